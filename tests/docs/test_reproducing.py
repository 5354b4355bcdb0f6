"""The page about papers names all presets, with the times and the numbers that the experiments state."""

import importlib
import re
from pathlib import Path

import pytest

from experiments import hyperspherical_uniformity
from nc_jax.study.progress import duration

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
MODULES = {
    path.stem: importlib.import_module(f"experiments.{path.stem}")
    for path in sorted((ROOT / "experiments").glob("*.py"))
    if "PRESETS" in path.read_text(encoding="utf-8")
}
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w])")


def rows(heading: str) -> list[list[str]]:
    part = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")
    ]
    return cells[2:]


AT_HAND, PAPER = rows("On data at hand"), rows("With the papers' settings")


@pytest.mark.parametrize(("command", "time", "measured"), [row[1:] for row in AT_HAND], ids=[row[1] for row in AT_HAND])
def test_a_command_has_the_time_and_the_numbers_of_its_preset(command, time, measured):
    name, preset = re.fullmatch(r"`(\w+) ?([\w-]*)`", command).groups()
    module = MODULES[name]
    about = module.ABOUT[preset or "default"]
    if about.minutes is not None:
        assert time == duration(60 * about.minutes)
    finding = re.search(r"\((findings/\w+\.md)\)", measured)
    known = f"{about.expect} {module.__doc__}"
    if finding:
        known += (ROOT / "docs" / finding[1]).read_text(encoding="utf-8")
    said = NUMBER.findall(re.sub(r"\]\([^)]*\)", "", measured))
    said += NUMBER.findall(time) if about.minutes is None else []
    missing = [number for number in said if number not in NUMBER.findall(known)]
    assert not missing, missing


def test_all_presets_of_papers_are_listed_with_the_number_of_their_runs():
    listed = {}
    for experiment, presets, runs, _ in PAPER:
        for preset in re.findall(r"`([\w-]+)`", presets):
            listed[experiment.strip("`"), preset] = f"{runs} runs"
    known = {
        (name, preset): module.plan(settings).parts
        for name, module in MODULES.items()
        for preset, settings in module.PRESETS.items()
        if preset.startswith("paper-")
    }
    assert listed == known


def test_commands_anywhere_on_the_page_name_presets():
    found = re.findall(r"python -m experiments\.([a-z]\w+) ([a-z][\w-]*)", PAGE)
    assert found
    for name, preset in found:
        assert preset in MODULES[name].PRESETS


def test_errors_of_hug_are_those_of_its_presets():
    names = {"resnet18": "ResNet-18", "vgg16": "VGG-16", "densenet121": "DenseNet-121"}
    for network, title in names.items():
        row = re.search(rf"^\| {title} \|(.*)\|$", PAGE, re.M)[1]
        both = [hyperspherical_uniformity.PAPER_ERRORS[data, network] for data in ("cifar10", "cifar100")]
        assert [float(number) for number in NUMBER.findall(row)] == [number for pair in both for number in pair]
