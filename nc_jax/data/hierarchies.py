"""Label trees of the data sets, by name or from a file."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from nc_jax import hierarchy
from nc_jax.extras import require
from nc_jax.hierarchy import LabelTree

Inner = Literal["refuse", "leaf"]

WORDNET = "wordnet"
WORDNET_FOLDER = "/usr/share/wordnet"  # where Debian's package wordnet-base puts the database

# Krizhevsky, Learning multiple layers of features from tiny images (2009): 20 superclasses of five classes each. Names
# are TFDS's.
CIFAR100 = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}

# Digits by their strokes: those with a closed loop, open curves, and nearly straight strokes. Among the loops, 0 is
# only a loop, while 6, 8 and 9 have a second part. Among the open curves, 3 and 5 end in the same bowl, and 2 does not.
# The tree follows from the shapes alone: it was made before any network was trained.
DIGITS = {
    "digit": {
        "loop": {"plain loop": ["0"], "loop and more": ["6", "8", "9"]},
        "open curve": {"bowl below": ["3", "5"], "no bowl": ["2"]},
        "straight": {"crossing": ["4"], "without crossing": ["1", "7"]},
    }
}


def load(
    name: str, classes: tuple[str, ...] | None = None, *, parents: str | None = None, inner: str = "refuse"
) -> LabelTree:
    """Load a label tree by name, or from a file.

    Args:
        name: "cifar100" (20 superclasses), "digits" (shape of the strokes), "glyphs/shape" (Ward's clusters of the
            rendered characters, 10 and then 35), "glyphs/script" (script, then case), "wordnet", or a file. A `.json`
            file holds a nested tree, a `.tsv` or `.csv` file one column per level, any other file lines of a parent and
            a child. "wordnet" is the tree of WordNet 3.0's nouns above the classes (`hierarchy.read_wordnet`), without
            nodes that have one child. It is read from `WORDNET_FOLDER`; "wordnet:FOLDER" names another folder.
        classes: class names of the data set, in the order of its labels; the classes of the tree get the same order.
            The glyphs need them, because their number may vary. For WordNet they are names of synsets, such as
            n01440764, as in all sets and folders of the ImageNet family; None takes the 1,000 of imagenet2012. None:
            other trees have their classes sorted.
        parents: what becomes of a node with several parents in a file or in WordNet; see `LabelTree.from_edges`. None
            takes "one" for files, and "deepest" for WordNet, for which see `hierarchy.read_wordnet`.
        inner: what becomes of a class that is an inner node of the tree. "refuse": it is an error. "leaf": the class
            gets a leaf of its own below that node; see `LabelTree.with_leaves`.

    Raises:
        ValueError: if there is no such tree, if a class is not a leaf of the tree, or if a leaf is not a class.
        FileNotFoundError: if the file does not exist, or WordNet is not in the folder.

    Example:
        >>> load("digits").height, load("glyphs/script", tuple("01234")).height
        (3, 3)
    """
    if inner not in get_args(Inner):
        raise ValueError(f"inner must be one of {', '.join(map(repr, get_args(Inner)))}; got {inner!r}")
    wordnet = _wordnet_folder(name)
    if wordnet is not None:
        classes = imagenet_synsets() if classes is None else classes
        tree = hierarchy.read_wordnet(wordnet, classes, parents="deepest" if parents is None else parents)
    elif name in BUNDLED:
        tree = BUNDLED[name](classes)
    elif Path(name).suffix:
        tree = _read(Path(name), "one" if parents is None else parents)
    else:
        raise ValueError(f"a tree must be one of {', '.join([*BUNDLED, WORDNET])}, or a file; got {name!r}")
    if classes is not None:
        tree = (tree.with_leaves(classes) if inner == "leaf" else tree).ordered(classes)
    return tree if wordnet is None else tree.pruned()


def readable(name: str, tree: LabelTree) -> LabelTree:
    """Return a tree that `load` gave, with words for its synsets if it is WordNet's, for people to read.

    Args:
        name: name of the tree.
        tree: the tree.

    Raises:
        ValueError, FileNotFoundError: as `hierarchy.synset_names`.
    """
    folder = _wordnet_folder(name)
    if folder is None:
        return tree
    words = hierarchy.synset_names(folder, tree.classes)
    return tree.renamed(words | {f"{synset} (all)": f"{word} (all)" for synset, word in words.items()})


def imagenet_synsets() -> tuple[str, ...]:
    """Return the names of the 1,000 classes of imagenet2012, in the order of its labels.

    They are read from the package TensorFlow Datasets, without importing it. The images are not needed.

    Raises:
        MissingExtraError: if the package is not installed.

    Example:
        >>> imagenet_synsets()[:2]
        ('n01440764', 'n01443537')
    """
    require("tensorflow_datasets", "data", "the list of ImageNet's classes")
    found: Any = importlib.util.find_spec("tensorflow_datasets")
    (folder, *_) = found.submodule_search_locations
    return tuple((Path(folder) / "datasets" / "imagenet2012" / "labels.txt").read_text(encoding="ascii").split())


def _wordnet_folder(name: str) -> str | None:
    """The folder of WordNet that a name means; None if it means another tree."""
    if name == WORDNET:
        return WORDNET_FOLDER
    return name.removeprefix(f"{WORDNET}:") if name.startswith(f"{WORDNET}:") else None


def _read(path: Path, parents: str) -> LabelTree:
    readers = {".json": hierarchy.read_json, ".tsv": hierarchy.read_levels, ".csv": hierarchy.read_levels}
    return readers.get(path.suffix.lower(), hierarchy.read_parent_child)(path, parents=parents)


def _glyphs(kind: str, classes: tuple[str, ...] | None) -> LabelTree:
    from nc_jax.data.characters import CHARACTERS, script_tree, shape_levels  # with matplotlib, for its fonts

    if classes is None or tuple(classes) != tuple(CHARACTERS[: len(classes)]):
        raise ValueError("a tree of glyphs needs the set's class names, which are the first so many characters")
    if kind == "script":
        # Name an inner node "script case", so that its name differs from those of all characters.
        nested = {
            script: {f"{script} {case}": below for case, below in cases.items()}
            for script, cases in script_tree(len(classes)).items()
        }
        return hierarchy.from_nested({"glyph": nested})
    cuts = [cut for cut in (10, 35) if cut < len(classes)]  # default cuts of `shape_levels`; the classes are the leaves
    levels = shape_levels(len(classes), cuts) if cuts else []
    rows = [[*(str(level[label]) for level in levels), name] for label, name in enumerate(classes)]
    return hierarchy.from_levels(rows, [*(f"cut{cut}" for cut in cuts), "glyph"])


BUNDLED: dict[str, Callable[[tuple[str, ...] | None], LabelTree]] = {
    "cifar100": lambda _: hierarchy.from_nested(
        {"cifar100": {name: below.split() for name, below in CIFAR100.items()}}
    ),
    "digits": lambda _: hierarchy.from_nested(DIGITS),
    "glyphs/shape": lambda classes: _glyphs("shape", classes),
    "glyphs/script": lambda classes: _glyphs("script", classes),
}
