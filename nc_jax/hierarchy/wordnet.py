"""Label trees from the nouns of WordNet, as the files of its database have them.

A *synset* is a meaning, with the words that have it. Data sets of the ImageNet family name their classes by synsets of
WordNet 3.0: n02084071 is the noun whose line begins at byte 02084071 of the file `data.noun`, the dog. That line lists
the synset's words and pointers to other synsets. The pointers "@" and "@i" lead to its *hypernyms*, the more general
meanings, which are its parents. `index.noun` lists, for each word, the synsets that it may stand for.

Reference: Fellbaum (ed.), WordNet: an electronic lexical database (1998); the manual page wndb(5WN) for the files.
"""

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from nc_jax.hierarchy.readers import naming
from nc_jax.hierarchy.tree import LabelTree

_HYPERNYMS = ("@", "@i")  # of a kind (a dog is a canine), and of an instance (the Nile is a river)
_PHYSICAL = "n00001930"  # the physical entity; the other child of the root is the abstraction
_SYNSET = re.compile(r"n\d{8}")


class _Noun(NamedTuple):
    """A synset: its first word, with "_" for blanks, and its hypernyms."""

    word: str
    hypernyms: tuple[str, ...]


def read_wordnet(
    folder: str | Path,
    synsets: Iterable[str],
    *,
    parents: str = "deepest",  # Bertinetto et al. (2020), released program: the longest path to the root
) -> LabelTree:
    """Read the part of WordNet's nouns that is above some synsets, as a label tree.

    WordNet is no tree: some synsets have several hypernyms. A dog is a canine and a domestic animal. The former is
    farther from the root, so "deepest" puts the dog beside the wolf, and "shallowest" beside other domestic animals.
    Hypernyms that are abstractions are left out first, if there is another one: a substance is matter and a part.

    Args:
        folder: folder with the files `data.noun` and `index.noun` of WordNet 3.0.
        synsets: names of synsets, usually the classes, in any order: "n" and the eight digits of a byte in `data.noun`.
        parents: what becomes of a node with several parents; see `LabelTree.from_edges`. Of equal ones, "deepest" and
            "shallowest" keep the hypernym that WordNet lists first.

    Returns:
        A tree whose leaves are the synsets, apart from those that are above others. They keep their names. All other
        nodes are named by their first word and the number of its meaning, such as "dog.n.01". Nodes with one child
        are part of the tree; `LabelTree.pruned` leaves them out, as Bertinetto et al. do.

    Raises:
        FileNotFoundError: if a file is not in the folder. The message says where to get it.
        ValueError: if a name is not that of a synset, a file is damaged or of another version of WordNet, or
            `LabelTree.from_edges` raises one. The message begins with the path of the file.

    Reference: Bertinetto et al., Making better mistakes (2020), whose trees of ImageNet are made in this way. They
    chose by hand between longest paths of equal length, and made physical entities of three classes that WordNet has
    as abstractions only: the street sign, the traffic light and the bubble.
    """
    given = {_checked(synset): synset for synset in synsets}
    path, content = _read(folder, "data.noun")
    with naming(path):
        listed = _walk(given, lambda synset: _noun(content, synset).hypernyms)
        physical = _below(_PHYSICAL, listed)
        kept = _walk(given, lambda synset: tuple(filter(physical.__contains__, listed[synset])) or listed[synset])
        others = {synset: _noun(content, synset) for synset in kept if synset not in given}
    names = given | _names(folder, others)
    # Sorted, so that the tree does not depend on the order in which the synsets are given.
    pairs = [(names[above], names[synset]) for synset in sorted(kept) for above in kept[synset]]
    with naming(path):
        return LabelTree.from_edges(pairs, parents=parents)


def synset_names(folder: str | Path, synsets: Iterable[str]) -> dict[str, str]:
    """Return readable names of synsets: the first word and the number of its meaning, such as "dog.n.01".

    Args:
        folder: folder with the files `data.noun` and `index.noun` of WordNet 3.0.
        synsets: names of synsets: "n" and the eight digits of a byte in `data.noun`.

    Returns:
        For each synset its name, which no other synset has. `LabelTree.renamed` takes it.

    Raises:
        FileNotFoundError, ValueError: as `read_wordnet`.
    """
    path, content = _read(folder, "data.noun")
    with naming(path):
        nouns = {synset: _noun(content, synset) for synset in map(_checked, synsets)}
    return _names(folder, nouns)


def _walk(start: Iterable[str], hypernyms_of: Callable[[str], tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Hypernyms of some synsets and of all that is above them."""
    found: dict[str, tuple[str, ...]] = {}
    waiting = list(start)
    while waiting:
        synset = waiting.pop()
        if synset not in found:
            found[synset] = hypernyms_of(synset)
            waiting += found[synset]
    return found


def _below(root: str, hypernyms: Mapping[str, tuple[str, ...]]) -> set[str]:
    """The root, and the synsets from which a path of hypernyms leads to it."""
    found, new = set(), {root}
    while new:
        found |= new
        new = {synset for synset, above in hypernyms.items() if not found.isdisjoint(above)} - found
    return found


def _noun(content: bytes, synset: str) -> _Noun:
    """Read the line that begins at the byte after which the synset is named."""
    start = int(synset[1:])
    end = content.find(b"\n", start)
    line = content[start:] if end < 0 else content[start:end]
    try:
        offset, _, kind, count, *rest = line.partition(b" | ")[0].decode("ascii").split(" ")
        words = 2 * int(count, 16)  # each is followed by a number
        pointers = rest[words + 1 :]
        sound = (offset, kind) == (synset[1:], "n") and words > 0 and len(pointers) == 4 * int(rest[words])
        symbols, targets, kinds = (pointers[place::4] for place in range(3))
        to = zip(symbols, targets, kinds, strict=True)
        hypernyms = tuple(f"n{target}" for symbol, target, of in to if symbol in _HYPERNYMS and of == "n")
    except (ValueError, IndexError):
        sound, rest, hypernyms = False, [""], ()
    if not sound or not all(map(_SYNSET.fullmatch, hypernyms)):
        raise ValueError(
            f"the line of the noun {synset} must begin at byte {start}, as in WordNet 3.0; "
            f"got {line[:60].decode('ascii', 'replace')!r} there"
        )
    return _Noun(rest[0], hypernyms)


def _names(folder: str | Path, nouns: Mapping[str, _Noun]) -> dict[str, str]:
    """Name synsets by their first word and by their place among the meanings of that word."""
    path, content = _read(folder, "index.noun")
    lines = {line.partition(b" ")[0]: line for line in content.split(b"\n")}
    names = {}
    with naming(path):
        for synset, noun in nouns.items():
            word = noun.word.lower()
            fields = lines.get(word.encode(), b"").decode("ascii", "replace").split()
            count = int(fields[2]) if len(fields) > 2 and fields[2].isdecimal() else 0
            meanings = fields[len(fields) - count :]  # the most frequent one first
            if synset[1:] not in meanings:
                got = reprlib.repr(meanings)
                raise ValueError(f"the meanings of {word!r} must include {synset[1:]}, as in WordNet 3.0; got {got}")
            names[synset] = f"{word}.n.{meanings.index(synset[1:]) + 1:02d}"
    return names


def _checked(synset: str) -> str:
    if not _SYNSET.fullmatch(synset):
        raise ValueError(
            f"a noun of WordNet is named by n and eight digits, such as n02084071, the dog; got {synset!r}"
        )
    return synset


def _read(folder: str | Path, name: str) -> tuple[Path, bytes]:
    path = Path(folder).expanduser() / name
    if not path.is_file():
        raise FileNotFoundError(
            f"the nouns of WordNet 3.0 must lie in {folder} (apt-get install wordnet-base puts them into "
            "/usr/share/wordnet; in Princeton's archive WordNet-3.0.tar.gz they are in the folder dict); "
            f"got no {name} there"
        )
    return path, path.read_bytes()
