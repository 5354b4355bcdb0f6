"""Data sets by name, with what belongs to them: class names, preprocessing, a label tree."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import numpy as np

from nc_jax.data import (
    ExampleSource,
    LabelledArrays,
    class_names_of,
    digits,
    glyphs,
    hierarchies,
    labels_of,
    sources,
    tables,
    take_per_class,
)
from nc_jax.data.augment import AUGMENTATIONS, make, make_preprocess
from nc_jax.data.images import ImageSource
from nc_jax.hierarchy import LabelTree, from_nested
from nc_jax.hierarchy.tree import Parents
from nc_jax.study.progress import say
from nc_jax.training.step import Augment, Preprocess

MANY_INPUTS = 64 * 64 * 3  # then the first layer of the default MLP has 3 million weights, and the others 0.1 million


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """What to train on.

    Attributes:
        name: name of the data set: digits, glyphs, glyphs/low-data, cifar10 and others that
            `nc_jax.data.sources.load` knows, the path of a folder of images, "idx:" and the path of a folder of IDX
            files, as MNIST and Fashion-MNIST have them, or a table of numbers for the MLP: shuttle, letter, vowel,
            satellite, or "rda:" and the path of a data file of R.
        tree: label tree of the classes: cifar100, digits, glyphs/shape, glyphs/script or wordnet, or the path of a file
            (see `nc_jax.data.hierarchies`). "flat" puts all classes at the same distance. None is no tree, for methods
            that need none.
        tree_parents: what becomes of a node with several parents in a tree's file or in WordNet: "one" refuses it,
            "shallowest" keeps the parent that is nearest to the root, "deepest" the one that is farthest from it. None
            is "one" for files and "deepest" for WordNet.
        tree_inner: what becomes of a class that is an inner node of the tree: "refuse" it, or give it a "leaf" of its
            own below that node.
        num_classes: number of glyph classes, 2 to 1000. None takes the preset's. Other data sets have a fixed number.
        per_class: number of training images to keep of each class. None keeps all.
        without_class: label of a class to leave out of the training set. None leaves out none.
        augmentation: random changes of the training images: none, shift, flip, cifar or cifar-reflect (see
            `nc_jax.data.augment`).
        train_crop: how training images of different sizes come to one size: "random" cuts a random rectangle,
            "stretch" resizes the whole image.
        test_crop: how test images of different sizes come to one size: "centre" cuts the middle, "stretch" resizes the
            whole image.
        image_size: height and width, in pixels, to which the images of a folder or of ImageNet are brought. None takes
            the median of the shorter sides of a folder's images, at most 224, and 224 for other sets.
        test_share: share of the images of each class that are tested on, where a folder of images has no split for
            that, such as 0.2 for FOLDER/class/image; or of the rows of a table. The same ones for every seed. None uses
            the folder's own splits, and a quarter of a table.
        train_list: file with a line "path label" for each image to train on, as ImageNet-LT and Places-LT have it; the
            images lie in the folder that is the name of the data set. None takes the images as they lie in folders.
        test_list: file with a line "path label" for each image to test on, which goes with a list to train on. None
            takes the images as they lie in folders.
        groups: column of a table that says to which group, such as a speaker, a row belongs. It is then no feature,
            every group is a client of federated learning, and the test share is taken of each class within each group.
            None: no groups.
        data_dir: folder in which TFDS keeps prepared data and in which folders of images are looked for. None is the
            default folder of TFDS.
    """

    name: str = "digits"
    tree: str | None = None
    tree_parents: Parents | None = None
    tree_inner: hierarchies.Inner = "refuse"
    num_classes: int | None = None
    per_class: int | None = None
    without_class: int | None = None
    augmentation: str = "none"
    train_crop: Literal["random", "stretch"] = "random"
    test_crop: Literal["centre", "stretch"] = "centre"
    image_size: int | None = None
    test_share: float | None = None
    train_list: str | None = None
    test_list: str | None = None
    groups: str | None = None
    data_dir: str | None = None


class Data(NamedTuple):
    """A data set, ready to be trained on.

    Attributes:
        train: the training set.
        test: the test set.
        augment: random change of a training example; None changes nothing.
        preprocess: change of every batch of inputs; None changes nothing.
        size: height of the images, in pixels, or the length of vectors.
        tree: label tree with its classes in the order of the labels; None where none was asked for.
        order: the class, as the set numbers it, that each label stands for, shape (K,); None if labels are as the set
            numbers them.
        tasks: numbers of the tasks of the training and of the test examples; None if there are no tasks.
        bounds: smallest and largest valid input, for images as floats: two numbers, or two arrays of an example's
            shape; None if there are no limits, as in a table. The largest is 1 above the smallest.
    """

    train: ExampleSource
    test: ExampleSource
    augment: Augment | None
    preprocess: Preprocess | None
    size: int
    tree: LabelTree | None = None
    order: np.ndarray | None = None
    tasks: tuple[np.ndarray, np.ndarray] | None = None
    bounds: tuple[Any, Any] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return self.train.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""
        return class_names_of(self.train)

    @property
    def class_sizes(self) -> np.ndarray | None:
        """Number of training examples of each class, shape (K,); None if only reading the examples could tell."""
        labels = labels_of(self.train)
        return None if labels is None else np.bincount(labels, minlength=self.num_classes)

    @property
    def absent_classes(self) -> tuple[int, ...]:
        """The classes without a training example, as far as that is known."""
        return self.train.absent_classes() if isinstance(self.train, LabelledArrays) else ()

    def as_numbered(self, values: np.ndarray) -> np.ndarray:
        """Return numbers of labels, shape (K, ...), by the classes as the set numbers them; matrices in both axes.

        Args:
            values: one number per label, shape (K,), or a matrix (K, K).
        """
        if self.order is None:
            return values
        places = np.argsort(self.order)
        return values[np.ix_(*[places] * values.ndim)]

    def held_out(self, mask: np.ndarray) -> "Data":
        """Train on some training examples and test on the others; the test set plays no part.

        Args:
            mask: which training examples to test on, shape (N,), bool.

        Raises:
            ValueError: if the training set is not in memory.
        """
        if not isinstance(self.train, LabelledArrays):
            raise ValueError(f"parts of a training set are held out in memory; got {self.train!r}")
        return self._replace(train=self.train.subset(~mask), test=self.train.subset(mask))


def load(options: DataOptions, *, flat: bool = False, seed: int = 0) -> Data:
    """Load a data set by name.

    Digits come with the mean training image subtracted; other images stay bytes until the device normalises them.

    Args:
        options: which data set, and how it is changed.
        flat: for an MLP, which a table needs: digits as vectors instead of images, and a line on standard error for
            more than `MANY_INPUTS`.
        seed: seed of the choice that `per_class` makes, and of random crops.

    Raises:
        ValueError: if there is no such set, tree or augmentation, or it cannot be had that way.
        FileNotFoundError: if the set has not been prepared.
    """
    name, data_dir = options.name, options.data_dir
    base, _, preset = name.partition("/")
    if options.augmentation not in AUGMENTATIONS:
        raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}; got {options.augmentation!r}")
    if options.num_classes is not None and base != "glyphs":
        raise ValueError(
            f"only the glyphs come with any number of classes; got num_classes={options.num_classes} of {name}"
        )
    if base in sources.EMBEDDED and (options.image_size, options.test_share) != (None, None):
        raise ValueError(
            f"image_size and test_share are for images in files; got image_size={options.image_size}, "
            f"test_share={options.test_share} for {name}"
        )
    lists, table = (options.train_list, options.test_list), tables.is_table(name)
    if (lists[0] is None) != (lists[1] is None):
        raise ValueError(
            f"train_list and test_list must be given together; got train_list={lists[0]!r}, test_list={lists[1]!r}"
        )
    if lists[0] is not None and (base in sources.EMBEDDED or options.test_share is not None):
        raise ValueError(
            "train_list and test_list are for folders of images, and say what to test on; got "
            f"test_share={options.test_share} for {name}"
        )
    if table and not flat:
        raise ValueError(
            "a table has vectors for the MLP (--backbone.name mlp, flat=True), and no images for another network; got "
            f"{name}"
        )
    if options.groups is not None and not table:
        raise ValueError(f"groups are a column of a table; got groups={options.groups!r} for {name}")
    if table and options.augmentation != "none":
        raise ValueError(f"tables have no augmentation: they are vectors; got {options.augmentation!r} for {name}")
    train: Any
    test: Any
    bounds: tuple[Any, Any] | None = None if table else (0.0, 1.0)  # of images as floats
    if base == "digits":
        if options.augmentation != "none":
            raise ValueError(f"digits have no augmentation: they are centred vectors; got {options.augmentation!r}")
        train, test, bounds = _centred_digits(data_dir, (64,) if flat else (8, 8, 1))
    elif base == "glyphs":  # rendered at once: sooner than it is read from a folder
        count = options.num_classes or glyphs.NUM_CLASSES
        train, test = (
            glyphs.load(split, preset=preset or "default", num_classes=count)  # pyright: ignore[reportArgumentType]
            for split in ("train", "test")
        )
    else:
        train, test = _prepared(options, seed)
    if options.per_class is not None:
        if not isinstance(train, LabelledArrays):
            raise ValueError(f"per_class needs a set in memory; got {name}")
        train = take_per_class(train, options.per_class, seed=seed)
    if options.without_class is not None:
        train = _without(train, options.without_class, name)
    ready = table or base == "digits"
    shape = train.take(np.zeros(1, np.int64)).inputs.shape[1:]
    if flat and math.prod(shape) > MANY_INPUTS:
        say(
            f"the MLP gets {math.prod(shape):,} inputs from images of shape {shape}, and its first layer has a weight "
            "for each of them and each unit; smaller images (--data.image-size 32) or a convolutional network "
            "(--backbone.name resnet18) need fewer"
        )
    return Data(
        train,
        test,
        augment=None if ready or options.augmentation == "none" else make(options.augmentation),
        preprocess=None if ready else make_preprocess(sources.known_name(name)),
        size=shape[0],
        tree=_tree(options, train.class_names),
        bounds=bounds,
    )


def _tree(options: DataOptions, class_names: tuple[str, ...]) -> LabelTree | None:
    if options.tree is None:
        return None
    if options.tree == "flat":
        return from_nested({"root": list(class_names)}).ordered(class_names)
    return hierarchies.load(options.tree, class_names, parents=options.tree_parents, inner=options.tree_inner)


def _centred_digits(
    data_dir: str | None, shape: tuple[int, ...]
) -> tuple[LabelledArrays, LabelledArrays, tuple[np.ndarray, np.ndarray]]:
    """Return both splits less the mean training image, and what black and white images have become."""
    train, test = (digits.load(split, data_dir) for split in ("train", "test"))
    mean = train.inputs.mean(axis=0)
    train, test = (dataclasses.replace(part, inputs=(part.inputs - mean).reshape(-1, *shape)) for part in (train, test))
    return train, test, ((0 - mean).reshape(shape), (1 - mean).reshape(shape))


def _prepared(options: DataOptions, seed: int) -> tuple[Any, Any]:
    if options.train_list is not None and options.test_list is not None:
        train, test = sources.load_lists(
            options.name, options.train_list, options.test_list, options.data_dir, image_size=options.image_size
        )
    else:
        train, test = _in_splits(options)
    if isinstance(train, ImageSource) and isinstance(test, ImageSource):
        size = train.size
        assert size is not None, "sources that crop have one"
        train = train.stretched(size) if options.train_crop == "stretch" else train.cropped(size, seed=seed)
        test = test.stretched(size) if options.test_crop == "stretch" else test.cropped(size)
    return train, test


def _in_splits(options: DataOptions) -> tuple[Any, Any]:
    if options.groups is not None:
        root, share = sources.root_of(options.data_dir), options.test_share
        train, test = (
            tables.load_clients(options.name, split, root, groups=options.groups, test_share=share)
            for split in ("train", "test")
        )
        return train, test
    splits = sources.splits(options.name, options.data_dir, test_share=options.test_share)
    if len(splits) < 2:
        raise ValueError(
            f"{options.name} must have a split to train on and one to test on (--data.test-share 0.2 tests on a fifth "
            f"of each class); got {', '.join(splits)}"
        )
    given: Any = {"test_share": options.test_share, "image_size": options.image_size}
    train, test = (sources.load(options.name, split, options.data_dir, **given) for split in splits[:2])
    return train, test


def _without(train: Any, absent: int, name: str) -> LabelledArrays:
    if not isinstance(train, LabelledArrays):
        raise ValueError(f"without_class needs a set in memory; got {name}")
    if not 0 <= absent < train.num_classes:
        raise ValueError(f"without_class must lie in 0..{train.num_classes - 1}; got {absent}")
    return train.subset(train.labels != absent)
