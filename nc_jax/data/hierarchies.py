"""Label trees of the data sets: what a hierarchy is by default, and what it is for the embedded sets."""

from collections.abc import Callable
from pathlib import Path

from nc_jax import hierarchy
from nc_jax.data.characters import CHARACTERS, script_tree, shape_levels
from nc_jax.hierarchy import LabelTree

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

# By how the pen moves. A digit with a closed loop is made of curves around a hole; the others are open curves, or
# nearly straight strokes. Within the loops, 0 is nothing else, while 6, 8 and 9 add a second part; of the open ones,
# 3 and 5 end in the same bowl, which 2 has not. A guess from the shapes, made before any network was trained.
DIGITS = {
    "digit": {
        "loop": {"plain loop": ["0"], "loop and more": ["6", "8", "9"]},
        "open curve": {"bowl below": ["3", "5"], "no bowl": ["2"]},
        "straight": {"crossing": ["4"], "without crossing": ["1", "7"]},
    }
}


def load(name: str, classes: tuple[str, ...] | None = None) -> LabelTree:
    """A tree by name, or from a file.

    Args:
        name: "cifar100" (superclasses), "digits" (stroke shape), "glyphs/shape" (Ward's clusters of the rendered
            characters: 10, then 35), "glyphs/script" (script, then case), or a file: `.json` holds a nested tree,
            `.tsv` a column per level, any other parent-child lines.
        classes: the data set's class names, in the order of its labels; the tree's classes then come in that order.
            Needed for the glyphs, of which there may be any number; None leaves others sorted.

    Raises:
        ValueError: if there is no such tree; if a class is not a leaf of it, or a leaf is no class.
        FileNotFoundError: if there is no such file.

    Example:
        >>> load("digits").height, load("glyphs/script", tuple("01234")).height
        (3, 3)
    """
    if name in BUNDLED:
        tree = BUNDLED[name](classes)
    elif Path(name).suffix:
        tree = _read(Path(name))
    else:
        raise ValueError(f"a tree must be one of {', '.join(BUNDLED)}, or a file; got {name!r}")
    return tree if classes is None else tree.ordered(classes)


def _read(path: Path) -> LabelTree:
    readers = {".json": hierarchy.read_json, ".tsv": hierarchy.read_levels}
    return readers.get(path.suffix, hierarchy.read_parent_child)(path)


def _glyphs(kind: str, classes: tuple[str, ...] | None) -> LabelTree:
    if classes is None or tuple(classes) != tuple(CHARACTERS[: len(classes)]):
        raise ValueError("a tree of glyphs needs the set's class names, which are the first so many characters")
    if kind == "script":
        # An inner node is a path, and so never has the name of a character; each character ends one.
        nested = {
            script: {f"{script} {case}": below for case, below in cases.items()}
            for script, cases in script_tree(len(classes)).items()
        }
        return hierarchy.from_nested({"glyph": nested})
    cuts = [cut for cut in (10, 35) if cut < len(classes)]  # as `shape_levels`
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
