"""Label trees that several tests share: two real ones, if their files exist, and small artificial ones."""

from collections.abc import Mapping, Sequence
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


# Nouns and their hypernyms; "@i " marks that of an instance, and a number which meaning of the word it is.
NOUNS = {
    "entity": [],
    "physical_entity": ["entity"],
    "being": ["physical_entity"],
    "animal": ["being"],
    "carnivore": ["animal"],
    "canine": ["carnivore"],
    "domestic_animal": ["animal"],
    "dog": ["domestic_animal", "canine"],
    "wolf": ["canine"],
    "cat": ["domestic_animal", "carnivore"],
    "crane.2": ["animal"],
    "machine": ["physical_entity"],
    "crane": ["machine"],
    "river": ["physical_entity"],
    "Nile": ["@i river"],
    "abstraction": ["entity"],
    "relation": ["abstraction"],
    "part": ["relation"],
    "sign": ["relation"],
    "matter": ["physical_entity"],
    "wine": ["part", "matter"],
}


def write_wordnet(folder: Path, nouns: Mapping[str, Sequence[str]] = NOUNS) -> dict[str, str]:
    """Write nouns in WordNet's format into a folder; return the name of each synset, such as n00000123."""
    folder.mkdir(parents=True, exist_ok=True)
    # The physical entity begins at byte 1930, as in WordNet 3.0.
    legal = "  1 This software and database is provided as is.  \n".ljust(1928) + "\n\n"
    offsets = dict.fromkeys(nouns, 0)
    for _ in range(2):  # the lines are equally long whatever the offsets are, so the second round has the right ones
        text = legal
        for noun in sorted(nouns, key=lambda noun: (noun != "physical_entity", noun)):
            above = [f"{name[:2].strip() if name[0] == '@' else '@'} {name.split()[-1]}" for name in nouns[noun]]
            pointers = [f"{mark} {offsets[to]:08d} n 0000" for mark, to in map(str.split, above)]
            pointers += [f"~ {offsets[other]:08d} n 0000" for other in nouns if noun in nouns[other]]
            pointers.append("+ 00001740 v 0201")
            words = [noun.split(".")[0], *(f"Other_{number}" for number in range(10))]
            fields = [f"{offsets[noun]:08d} 05 n {len(words):02x}", *(f"{word} 0" for word in words)]
            offsets[noun] = len(text)
            text += " ".join([*fields, f"{len(pointers):03d}", *pointers, '| a gloss; "dog | cat"']) + "  \n"
    (folder / "data.noun").write_bytes(text.encode("ascii"))
    meanings: dict[str, list[str]] = {}
    for noun in sorted(nouns):
        meanings.setdefault(noun.split(".")[0].lower(), []).append(f"{offsets[noun]:08d}")
    lines = [f"{word} n {len(of)} 2 @ ~ {len(of)} 1 {' '.join(of)}  \n" for word, of in sorted(meanings.items())]
    (folder / "index.noun").write_bytes((legal + "".join(lines)).encode("ascii"))
    return {noun: f"n{offset:08d}" for noun, offset in offsets.items()}
