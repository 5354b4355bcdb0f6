"""Label trees that several tests share: two real ones, if their files exist, and small artificial ones."""

from pathlib import Path

import pytest

from nc_jax import hierarchy

REAL = Path(__file__).resolve().parents[2] / "shared" / "hierarchies"  # beside the checkout, never copied into it
UNEVEN = [("r", "x"), ("r", "y"), ("x", "a"), ("x", "z"), ("z", "b"), ("z", "c"), ("y", "d"), ("r", "e")]
PAIRS = [("r", "E"), ("r", "F"), ("E", "A"), ("E", "B"), ("F", "C"), ("F", "D")]  # that of the golden values


def real(name: str) -> hierarchy.LabelTree:
    """A real hierarchy; a test that asks for it skips where it is not there."""
    path = REAL / f"{name}.parent_child.txt"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return hierarchy.read_parent_child(path)
