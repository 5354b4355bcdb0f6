"""What a comparison runs: every row has names of its own, and every result belongs to what decides it."""

import dataclasses

import pytest

from nc_jax.study import Comparison
from nc_jax.study.comparison import Session, decides
from nc_jax.study.config import changed
from nc_jax.study.data import DataOptions, load
from nc_jax.study.settings import Group, expand


def with_cases(**cases) -> Comparison:
    return Comparison(methods=("learned",), grid={name.replace("_", " "): variants for name, variants in cases.items()})


FIXED = {"methods": ("fixed",)}
COLLISIONS = {
    "a method twice": (Comparison(methods=("fixed", "fixed")), "names of rows must differ, .*; got 'fixed', 'fixed'"),
    "two cases of one slug": (
        Comparison(methods=("learned",), grid={"a/b": {"": {}}, "a b": {"": FIXED}}),
        "folders must differ, .*; got 'checkpoints', 'superseded', 'tensorboard', 'a-b', 'a-b'",
    ),
    "two cases of one folder where case is ignored": (with_cases(A={"": {}}, a={"": FIXED}), "folders must differ"),
    "a case called as a folder of the run": (with_cases(Checkpoints={"": {}}, b={"": {}}), "folders must differ"),
    "a case without a letter": (
        Comparison(grid={"--": {"": {}}, "b": {"": {}}}),
        "folders must differ, in lower case too, and none may be empty; got",
    ),
    "a case and a variant that meet": (
        with_cases(a={"b c": {}}, a_b={"c": {}}),
        "names of rows must differ, .*; got 'a-b-c-learned', 'a-b-c-learned'",
    ),
    "two rows of one label": (
        Comparison(grid={"": {"a": {"methods": ("learned", "fixed")}, "a, fixed": FIXED}}),
        "rows of a table must differ, .*; got 'a, learned', 'a, fixed', 'a, fixed'",
    ),
    "two rates of one name": (Comparison(rates=(0.1, 0.1000000001)), "rates, .*, must differ, .*; got '0.1', '0.1'"),
}


@pytest.mark.parametrize("what", COLLISIONS)
def test_what_would_share_a_name_is_refused(what):
    config, sentence = COLLISIONS[what]
    with pytest.raises(ValueError, match=sentence):
        expand(config)


def test_folders_of_runs_have_safe_names():
    groups = expand(with_cases(**{"-5/..": {"": {}}, "b": {"-x": {}, "a:b*c?": {}}}))
    names = [group.run(0) for case in groups.values() for group in case]
    assert names == ["5-learned-seed0", "b-x-learned-seed0", "b-a-b-c-learned-seed0"]


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> list:
    """Three trees of ten glyphs in files of one name: two that are equal, and one that is not."""
    found = []
    classes = load(DataOptions("glyphs/low-data", num_classes=6, per_class=1)).class_names
    for number, cut in enumerate((3, 3, 2)):
        path = tmp_path_factory.mktemp(f"folder{number}") / "t.parent_child.txt"
        parts = {"left": classes[:cut], "right": classes[cut:]}
        lines = [f"root\t{part}\n" for part in parts]
        lines += [f"{part}\t{name}\n" for part, names in parts.items() for name in names]
        path.write_text("".join(lines))
        found.append(path)
    return found


def test_a_result_belongs_to_its_tree_wherever_that_lies(trees):
    settings = [
        Comparison(data=DataOptions("glyphs/low-data", str(path), num_classes=6, per_class=1)) for path in trees
    ]
    one, moved, other = (decides(config, load(config.data)) for config in settings)
    assert one == moved != other


CHANGES = {
    "optimizer.learning_rate": 0.3,
    "loop.epochs": 7,
    "backbone.dim": 9,
    "head.radius": 2.0,
    "hierarchy.gamma": 4.5,
    "data.per_class": 2,
    "target_accuracy": 0.5,
}
NOT_DECIDING = {"seeds": 3, "methods": ("fixed",), "cases": ("a",), "workdir": "b", "rates": (0.1,), "radii": (2.0,)}


def test_a_result_belongs_to_every_setting_that_decides_it():
    config = Comparison(data=DataOptions("glyphs/low-data", num_classes=3, per_class=1))
    data = load(config.data)
    hashes = {name: decides(changed(config, {name: value}), data) for name, value in CHANGES.items()}
    assert len({decides(config, data), *hashes.values()}) == 1 + len(CHANGES)
    for name, value in NOT_DECIDING.items():
        assert decides(changed(config, {name: value}), data) == decides(config, data)
    assert decides(config, data) != decides(config, data.held_out(data.train.labels == 0))


class TrainedError(Exception):
    """What a test raises where a run would be trained."""


def test_a_line_of_other_settings_is_not_taken_for_a_result(tmp_path):
    config = Comparison(data=DataOptions("glyphs/low-data", num_classes=3, per_class=1))
    data = load(config.data)

    def build():
        raise TrainedError

    def found(settings):
        group = Group("", "", "learned", settings)
        return session.train(group, data, build, 0, group.run(0), epochs=1)

    with Session(tmp_path, 1) as session:
        key = {"case": "", "variant": "", "method": "learned", "seed": 0, "run": "learned-seed0"}
        session.ledger.once(key | {"settings": decides(config, data)}, lambda: {"accuracy": 0.5})
        assert found(config) == {"accuracy": 0.5}
        assert found(dataclasses.replace(config, seeds=99)) == {"accuracy": 0.5}
        with pytest.raises(TrainedError):
            found(changed(config, {"loop.epochs": 3}))
