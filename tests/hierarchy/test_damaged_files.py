"""Damaged files of trees: a sound tree, or a sentence that names the file."""

import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from nc_jax import hierarchy

READERS = {
    "json": hierarchy.read_json,
    "txt": hierarchy.read_parent_child,
    "tsv": hierarchy.read_levels,
    "csv": hierarchy.read_levels,
}
WHOLE = {
    "json": '{"all": {"pet": {"cat": null, "dog": ["poodle", "caf\u00e9"]},\n "car": ["van", "red bus"], "sea": {}}}\n',
    "txt": "# kinds\nall\tpet\nall\tcar\npet\tcat\npet\tdog\ndog\tpoodle\ndog\tcaf\u00e9\ncar\tvan\nall sea\n",
    "tsv": "kind\tgroup\tclass\npet\tcats\tcat\npet\tdogs\tpoodle\npet\tdogs\tcaf\u00e9\ncar\t\tred bus\n\t\tsea\n",
    "csv": 'kind,group,class\npet,cats,cat\npet,dogs,poodle\npet,dogs,"caf\u00e9, au lait"\ncar,,red bus\n,,sea\n',
}
NAMES = [b"all", b"pet", b"cat", b"dog", b"car", b"sea", b"root", b"poodle", b"van"]
SIGNS = [
    b'"',
    b"'",
    b",",
    b"\t",
    b"\n",
    b"\r",
    b" ",
    b"#",
    b"\0",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"null",
    b"1e999",
]
SIGNS += [b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"\xe9", "\u2028".encode(), "\u0301".encode()]
Damage = st.one_of(
    st.tuples(st.just("cut"), st.integers(0, 300), st.integers(1, 40)),
    st.tuples(st.just("flip"), st.integers(0, 300), st.integers(0, 7)),
    st.tuples(st.just("insert"), st.integers(0, 300), st.one_of(st.sampled_from(SIGNS + NAMES), st.binary(max_size=4))),
    st.tuples(st.just("rename"), st.sampled_from(NAMES), st.sampled_from([*NAMES, b"", b" ", b"\n"])),
    st.tuples(st.just("lines"), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.just("encode"), st.sampled_from(["utf-16", "utf-32", "latin-1", "utf-8-sig"]), st.none()),
    st.tuples(st.just("deepen"), st.sampled_from([b'{"a":', b"[", b"x\ty\n"]), st.sampled_from([2, 900, 5000])),
)


def damaged(data, kind, where, what):
    """Return the bytes of a file after one kind of damage."""
    if kind == "cut":
        return data[:where] + data[where + what :]
    if kind == "flip":
        changed = bytearray(data)
        if changed:
            changed[where % len(changed)] ^= 1 << what
        return bytes(changed)
    if kind == "insert":
        return data[:where] + what + data[where:]
    if kind == "rename":
        return data.replace(where, what)
    if kind == "encode":
        return data.decode("utf-8", "replace").encode(where, "replace")
    if kind == "deepen":
        return where * what + data
    lines = data.splitlines(keepends=True)
    if lines:
        lines.insert(where % len(lines), lines[what % len(lines)])
    return b"".join(lines)


def check_sound(tree):
    """Check what every function of a tree relies on."""
    assert len(set(tree.nodes)) == len(tree.nodes) == len(tree.parents)
    assert tree.parents[0] == -1
    assert all(0 <= parent < node for node, parent in enumerate(tree.parents[1:], start=1))
    inner = set(tree.parents[1:])
    leaves = [name for node, name in enumerate(tree.nodes) if node not in inner]
    assert tree.classes == tuple(sorted(leaves))
    for name in tree.nodes:
        assert name.strip()
        assert not re.search(r"[\r\n\t\0\ufeff]", name)
        assert name.encode("utf-8")
    distances = tree.distances()
    np.testing.assert_array_equal(distances, distances.T)
    assert ((distances == 0) == np.eye(len(leaves), dtype=bool)).all()


def check_read(path, data, parents):
    """Read a damaged file; return whether that gave a tree."""
    path.write_bytes(data)
    try:
        tree = READERS[path.suffix[1:]](path, parents=parents)
    except ValueError as error:
        said = str(error)
    else:
        check_sound(tree)
        return True
    assert said.startswith(f"{path}: ")
    assert len(said.splitlines()) == 1
    return False


@pytest.mark.parametrize("suffix", READERS)
def test_whole_files_are_sound_trees(suffix, tmp_path):
    assert check_read(tmp_path / f"tree.{suffix}", WHOLE[suffix].encode(), "one")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", READERS)
def test_ten_thousand_damaged_files_are_sound_trees_or_a_sentence(suffix, tmp_path):
    outcomes = []

    @hypothesis.settings(max_examples=2500)
    @hypothesis.given(st.lists(Damage, min_size=1, max_size=4), st.sampled_from(["one", "shallowest"]))
    def read(damages, parents):
        data = WHOLE[suffix].encode()
        for damage in damages:
            data = damaged(data, *damage)
        outcomes.append(check_read(tmp_path / f"tree.{suffix}", data, parents))

    read()
    assert len(outcomes) >= 2500
    assert min(outcomes.count(True), outcomes.count(False)) > 100, "both kinds were met"
