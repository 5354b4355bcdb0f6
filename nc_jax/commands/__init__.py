"""The command line `nc-jax`.

Each command is a module of this package with a function `main(words)`, which is imported when it is asked for. So
`nc-jax measure` does not need the packages that training needs.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

import nc_jax
from nc_jax.study.ends import fail, one_sentence

COMMANDS = {
    "measure": "neural collapse of features that are stored in files: NC1 to NC4 and what else papers measure",
    "report": "one HTML page about one or several runs: settings, tables with tests, curves, confusions, cosines",
    "predict": "classes, probabilities and features that a trained run gives to images or to an array",
    "frame": "class vectors of a frame, written to a file that NumPy or PyTorch reads",
    "run": "train: one of the experiments, with a preset and settings",
    "list": "the experiments, with their questions, presets and times",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; end in status 2 and one sentence where that is not possible.

    Args:
        argv: the command and its words; None takes those of this process.
    """
    words = [*(sys.argv[1:] if argv is None else argv)]  # once nc_jax.commands.list is imported, it is `list` here
    if not words or words[0] in ("--help", "-h"):
        print(_help())
        return
    if words[0] == "--version":
        print(f"nc_jax {nc_jax.__version__}")
        return
    command = words.pop(0)
    if command not in COMMANDS:
        fail(f"the command must be one of {', '.join(COMMANDS)}; got {command!r}")
    with one_sentence(f"nc_jax {command}"):
        import_module(f"nc_jax.commands.{command}").main(words)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {sentence}" for name, sentence in COMMANDS.items()]
    return "\n".join(["usage: nc-jax COMMAND ...", "", *lines, "", "nc-jax COMMAND --help says what a command takes."])
