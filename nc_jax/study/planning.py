"""What a preset is for, how much work it is, and about how long it takes: said before anything is run."""

import textwrap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from nc_jax.study.progress import duration

MACHINE = "two CPU cores"  # on which the minutes of presets have been measured
WIDTH = 100  # columns of a terminal


class About(NamedTuple):
    """What a person wants to know about a preset before choosing it.

    Attributes:
        what: what the preset trains or computes, in one line.
        minutes: how long it takes on `MACHINE`: measured, or in proportion to the steps of a measured preset with the
            same networks. None if neither is known.
        expect: the main numbers that it gives; "" if nobody has measured them.
    """

    what: str
    minutes: float | None = None
    expect: str = ""


class Plan(NamedTuple):
    """The amount of work that some settings ask for.

    Attributes:
        parts: number of runs, in words.
        work: () -> how many units of work they are. Counting may read the data set.
        unit: name of the unit; its time is what all presets of an experiment have in common.
    """

    parts: str
    work: Callable[[], float]
    unit: str


def forecast(plan: Callable[[Any], Plan], config: Any, preset: Any, about: About | None) -> str:
    """Say how many runs and steps some settings are, and about how long they take.

    Args:
        plan: settings -> their work.
        config: the settings, with the preset's own directories and picture format.
        preset: the settings of the preset that they started from.
        about: what is known about that preset.
    """
    planned = plan(config)
    work = planned.work()
    text = f"{planned.parts}: {work:,.0f} {planned.unit}"
    if about is None or about.minutes is None:
        return f"{text}; no time has been measured for this preset, but a run says soon how much is left"
    if config == preset:
        return f"{text}; about {duration(60 * about.minutes)} on {MACHINE}"
    if _network_and_images(config) != _network_and_images(preset):
        return (
            f"{text}; no time has been measured for these settings, but a run says soon how much is left (the preset, "
            f"with another network or other examples, takes {duration(60 * about.minutes)})"
        )
    minutes = about.minutes * work / plan(preset).work()
    return (
        f"{text}; about {duration(60 * minutes)} on {MACHINE} if a step takes as long as in the preset, which takes "
        f"{duration(60 * about.minutes)}"
    )


def _network_and_images(config: Any) -> list[Any]:
    """Return the settings on which the time of a step depends most."""
    data, backbone = (getattr(config, part, None) for part in ("data", "backbone"))
    of_backbone = (getattr(backbone, name, None) for name in ("name", "hidden", "dim", "width_multiplier", "dtype"))
    return [getattr(data, "name", None), getattr(data, "image_size", None), *of_backbone]


def describe_presets(
    presets: Mapping[str, Any], about: Mapping[str, About], plan: Callable[[Any], Plan] | None, *, indent: str = "  "
) -> str:
    """List presets: what each is for, its runs, its time, and the numbers to expect.

    Args:
        presets: settings by name.
        about: what is known about them, by name.
        plan: settings -> their work; None leaves it out.
        indent: text in front of each line.
    """
    longest = max(map(len, presets))
    lines = []
    for name, settings in presets.items():
        known = about.get(name, About(""))
        runs = "" if plan is None else plan(settings).parts
        time = "" if known.minutes is None else duration(60 * known.minutes)
        words = "; ".join(filter(None, (known.what, ", ".join(filter(None, (runs, time))), known.expect)))
        front = f"{indent}{name:<{longest}}  "
        lines += textwrap.wrap(words, WIDTH, initial_indent=front, subsequent_indent=" " * len(front)) or [front]
    return "\n".join(lines)
