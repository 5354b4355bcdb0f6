"""The settings of a comparison, and what is to be run: cases x variants x methods x seeds."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tyro

from nc_jax.heads import NearestOptions
from nc_jax.methods import (
    ContinualOptions,
    FederatedOptions,
    HierarchyOptions,
    TailOptions,
    UniformityOptions,
    method,
)
from nc_jax.study.backbones import BackboneOptions
from nc_jax.study.cli import RunOptions
from nc_jax.study.config import changed, differences
from nc_jax.study.data import DataOptions
from nc_jax.training import LoopOptions, OptimizerOptions

FOLDERS = ("checkpoints", "superseded", "tensorboard")  # of every run
Changes = Mapping[str, Any]  # dotted names of settings and their values


@dataclasses.dataclass(frozen=True)
class Comparison(RunOptions):
    """Settings of a comparison; an experiment's presets are such values.

    Attributes:
        methods: names of the methods to compare. The table in the README lists them (`nc_jax.methods.METHODS`). Cases
            and variants of a preset that have methods of their own keep those.
        seeds: number of runs of each method. A seed sets the initial state and the order of the examples.
        rates: candidate learning rates. Every method uses the one with the best score on quarters of the training set
            that are held out. Empty: every method uses --optimizer.learning-rate.
        radii: candidate lengths of features, for heads that have one, chosen in the same way and together with the
            rate. Empty: every method uses --head.radius.
        cases: names of the preset's cases (data sets, networks) to run. Empty runs all of them.
        target_accuracy: a table shows the first epoch in which the test accuracy is at least this.
        data: what to train on.
        backbone: which network gives the features.
        optimizer: which optimiser, and its schedule.
        loop: how long to train.
        head: choices about fixed, rotated and nearest heads.
        hierarchy: choices about the methods that use a label tree.
        continual: choices about continual learning; --loop.epochs then counts passes over each task's examples.
        tail: choices about long-tailed learning.
        uniformity: choices about the methods that spread class vectors over the sphere.
        federated: choices about federated learning; --loop.epochs then counts rounds, and --loop.batch-size the
            examples of a local step.
        grid: per case and variant, what it changes in these settings (set by the preset).
    """

    methods: tuple[str, ...] = ("learned", "fixed", "nearest")
    seeds: int = 8  # enough for a paired test; five at least
    rates: tuple[float, ...] = ()
    radii: tuple[float, ...] = ()
    cases: tuple[str, ...] = ()
    target_accuracy: float = 0.95
    data: DataOptions = dataclasses.field(default_factory=DataOptions)
    backbone: BackboneOptions = dataclasses.field(default_factory=BackboneOptions)
    optimizer: OptimizerOptions = dataclasses.field(default_factory=OptimizerOptions)
    loop: LoopOptions = dataclasses.field(default_factory=LoopOptions)
    head: NearestOptions = dataclasses.field(default_factory=NearestOptions)
    hierarchy: HierarchyOptions = dataclasses.field(default_factory=HierarchyOptions)
    continual: ContinualOptions = dataclasses.field(default_factory=ContinualOptions)
    tail: TailOptions = dataclasses.field(default_factory=TailOptions)
    uniformity: UniformityOptions = dataclasses.field(default_factory=UniformityOptions)
    federated: FederatedOptions = dataclasses.field(default_factory=FederatedOptions)
    grid: tyro.conf.Suppress[Mapping[str, Mapping[str, Changes]]] = dataclasses.field(
        default_factory=lambda: {"": {"": {}}}
    )

    def candidates(self) -> list[dict[str, float]]:
        """Return the settings among which every method chooses, by dotted name; none if nothing is chosen."""
        names = {"optimizer.learning_rate": self.rates, "head.radius": self.radii}
        varied = {name: values for name, values in names.items() if values}
        return [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values()) if varied]


class Group(NamedTuple):
    """The runs that differ in nothing but the seed: a row of a table.

    Attributes:
        case: name of the case (data set or network); "" where there is one only.
        variant: name of the variant of the settings; "" where there is one only.
        method: name of the method.
        settings: those of the comparison, with the changes of the case and the variant.
    """

    case: str
    variant: str
    method: str
    settings: Comparison

    @property
    def label(self) -> str:
        """Name of the row, in tables and plots."""
        title = method(self.method).title
        if not self.variant:
            return title
        return self.variant if len(self.settings.methods) == 1 else f"{self.variant}, {title}"

    @property
    def name(self) -> str:
        """Name of the group in the log, and of its runs' folders of checkpoints, before the seed."""
        return "-".join(filter(None, (slug(self.case), slug(self.variant), self.method)))

    def run(self, seed: int) -> str:
        """Return the name of a run."""
        return f"{self.name}-seed{seed}"

    def at(self, changes: Changes) -> "Group":
        """Return the same runs with changes of their settings, by dotted name."""
        return self._replace(settings=changed(self.settings, changes))


def expand(config: Comparison) -> dict[str, list[Group]]:
    """Return the groups of each case.

    Raises:
        ValueError: if a setting does not exist or does not fit, a case or a method is unknown, or there is nothing to
            compare.
    """
    unknown = set(config.cases) - set(config.grid)
    if unknown:
        raise ValueError(
            f"cases must be among {', '.join(map(repr, config.grid))}; got {', '.join(map(repr, sorted(unknown)))}"
        )
    groups: dict[str, list[Group]] = {}
    for case, variants in config.grid.items():
        if config.cases and case not in config.cases:
            continue
        groups[case] = []
        for variant, changes in variants.items():
            settings = changed(config, changes)
            groups[case] += [Group(case, variant, name, settings) for name in settings.methods]
    if config.seeds < 1 or not all(groups.values()):
        raise ValueError(
            f"at least one method and one seed are needed; got methods={config.methods}, seeds={config.seeds}"
        )
    for group in itertools.chain(*groups.values()):
        method(group.method)
        refuse_twice("rates, to six digits,", [f"{rate:g}" for rate in group.settings.rates])
        refuse_twice("radii, to six digits,", [f"{radius:g}" for radius in group.settings.radii])
    refuse_twice("names of rows", [group.name for group in itertools.chain(*groups.values())])
    for rows in groups.values():
        refuse_twice("rows of a table", [group.label for group in rows])
    # Where there are several cases, each has a folder beside those of the run.
    refuse_twice("folders", [*FOLDERS, *map(slug, groups)] if len(groups) > 1 else [])
    return groups


def dotted(**changes: Any) -> dict[str, Any]:
    """Return changes of settings by their dotted names, from names with two underscores.

    Example:
        >>> dotted(tail__ratio=0.1, seeds=5)
        {'tail.ratio': 0.1, 'seeds': 5}
    """
    return {name.replace("__", "."): new for name, new in changes.items()}


def refuse_twice(what: str, names: Sequence[str]) -> None:
    """Raise a ValueError if a name is empty or comes twice; file systems may not tell upper from lower case.

    Example:
        >>> refuse_twice("cases", ["a b", "A B"])
        Traceback (most recent call last):
        ValueError: cases must differ, in lower case too, and none may be empty; got 'a b', 'A B'
    """
    folded = {name.casefold() for name in names}
    if len(folded) < len(names) or "" in folded:
        shown = ", ".join(map(repr, names))
        raise ValueError(f"{what} must differ, in lower case too, and none may be empty; got {shown}")


def refuse_overridden(config: Comparison, preset: Comparison, *, besides: Sequence[str] = ()) -> None:
    """Raise a ValueError if the command line set what the preset's cases or variants set, too.

    Args:
        config: the settings with the command line's changes.
        preset: the settings without them.
        besides: names of settings that the command line may set all the same; variants with their own keep theirs.
    """
    given = set(differences(config, preset)) - set(besides)
    for case, variants in config.grid.items():
        for variant, changes in variants.items():
            both = sorted(given & set(changes))
            if both and (not config.cases or case in config.cases):
                where = " and ".join(filter(None, (case, variant)))
                raise ValueError(
                    f"{both[0]} is what this preset varies ({where} sets it to {changes[both[0]]!r}); "
                    "leave it out, or take a preset without variants"
                )


def slug(name: str) -> str:
    """Return a name of safe characters for files; "" stays empty."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.")
