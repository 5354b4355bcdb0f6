"""scikit-learn's handwritten digits as a TensorFlow Datasets (TFDS) builder that does not need TensorFlow.

Nothing is downloaded: the images ship with scikit-learn, so experiments and tests run anywhere. The set is prepared
once in the usual TFDS folder (`<data_dir>/digits/1.0.0`) and read from there, as larger sets are.
"""

from nc_jax.extras import require

require("tensorflow_datasets", "data", __name__)

import contextlib
import io
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds  # takes 0.35 s, so `nc_jax.data` does not import this module; needs no TensorFlow
from jaxtyping import Int

from nc_jax.data.arrays import LabelledArrays

NUM_CLASSES = 10
PIXEL_MAX = 16  # each of the 8x8 pixels counts the inked dots of a 4x4 block (scikit-learn, load_digits, DESCR)
TEST_EVERY = 5  # one fifth for testing, the usual 80/20
SPLIT_SEED = 0  # part of the data set: with another seed, it would need another version number
SPLIT_SIZES = {"train": 1437, "test": 360}  # 1797 = 1437 + ceil(1797 / 5); other sizes mean that the set is damaged

_quiet = threading.Lock()
_log = logging.getLogger(__name__)


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits of 8x8 pixels with values 0..16, in a fixed stratified 80/20 split.

    Examples are `image` (8, 8) uint8, `label` and `id`, the example's number in `sklearn.datasets.load_digits`. Both
    splits are stored in ascending `id`. All 13 writers are in both splits, so the test is on new images, not on new
    writers.

    Reference: Alpaydin and Kaynak (1998), test part, as shipped with scikit-learn.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Stratified 1437/360 split, seed 0."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 8x8 pixels counting 0..16, from scikit-learn, stratified 80/20 split.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=NUM_CLASSES),
                    "id": tfds.features.Scalar(dtype=np.int32),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # keeps the ascending order of `id`
            homepage="https://scikit-learn.org/stable/datasets/toy_dataset.html#digits-dataset",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        from sklearn.datasets import load_digits  # one second, needed only here

        images, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
        images = images.reshape(-1, 8, 8).astype(np.uint8)
        parts = zip(SPLIT_SIZES, stratified_split(labels), strict=True)
        return {name: self._generate_examples(images, labels, ids) for name, ids in parts}

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, ids: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in ids.tolist():
            yield index, {"image": images[index], "label": int(labels[index]), "id": index}


def stratified_split(labels: Int[np.ndarray, " examples"]) -> tuple[np.ndarray, np.ndarray]:
    """Split into training and test part: shuffle, sort by class, and take every fifth example for testing.

    Counting goes on from class to class. So there are exactly ceil(N / 5) test examples in total, and in each class the
    number of test examples differs from a fifth by less than one.

    Args:
        labels: class of each example, shape (N,).

    Returns:
        The ascending example numbers of the training part and of the test part.

    Example:
        >>> train, test = stratified_split(np.repeat([0, 1], 10))
        >>> np.bincount(np.repeat([0, 1], 10)[test])
        array([2, 2])
    """
    # Sort raw random numbers instead of calling Generator.permutation: NumPy guarantees them for all its versions.
    shuffled = np.argsort(np.random.Philox(key=SPLIT_SEED).random_raw(len(labels)), kind="stable")
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[grouped[::TEST_EVERY]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def load(split: str, data_dir: str | Path | None = None) -> LabelledArrays:
    """The digits of one split as vectors. The first call prepares the set on disk.

    Several processes or threads may make the first call at the same time: each prepares in a folder of its own, the
    first one to finish renames its folder, and all read the same files. A preparation that is interrupted leaves only a
    folder named `incomplete.*`, which is never read.

    Args:
        split: "train" (1437 examples) or "test" (360).
        data_dir: root folder of prepared sets; None is the TFDS default, `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Returns:
        Inputs of shape (N, 64), float32 in [0, 1]: pixel counts divided by 16, without rounding. Labels of shape (N,),
        int32. Both in the order of `sklearn.datasets.load_digits`.

    Raises:
        ValueError: if there is no such split, or the prepared files are damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load("test", data_dir=folder)
        LabelledArrays(360 examples of shape (64,) float32, 10 classes)

    Reference: Alpaydin and Kaynak (1998), test part, as shipped with scikit-learn.
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"split must be one of {', '.join(map(repr, SPLIT_SIZES))}; got {split!r}")
    with _damage_in_one_sentence(data_dir):
        builder = Digits(data_dir=data_dir, file_format="array_record")  # reads the metadata if the set is prepared
    if not builder.data_path.exists():
        prepare_quietly(builder)
    with _damage_in_one_sentence(data_dir):
        source = Digits(data_dir=data_dir, file_format="array_record").as_data_source(split)  # pyright: ignore[reportCallIssue]
        # One call for all records: 46 ms for 1437, against 60 ms one by one (two CPU cores).
        records = source.__getitems__(range(len(source)))
        ids = np.array([record["id"] for record in records])
        if len(ids) != SPLIT_SIZES[split] or not (np.diff(ids) > 0).all():
            raise ValueError(f"{len(np.unique(ids))} distinct examples in {len(ids)} {split} records")
    images = np.stack([record["image"] for record in records]).reshape(len(records), -1)
    labels = np.array([record["label"] for record in records], dtype=np.int32)
    return LabelledArrays(images.astype(np.float32) / PIXEL_MAX, labels, num_classes=NUM_CLASSES)


def prepare_quietly(builder: tfds.core.DatasetBuilder) -> None:
    """Prepare an embedded set in its folder, and send what TFDS prints to the log. Safe for several processes at once.

    Args:
        builder: TFDS builder of a set that needs no download.

    Raises:
        OSError: if the folder cannot be written.
    """
    # TFDS prints a banner and four progress bars for a tenth of a second of work. Redirecting the output concerns the
    # whole process, so only one thread at a time does it.
    caught = io.StringIO()
    with _quiet, contextlib.redirect_stdout(caught), contextlib.redirect_stderr(caught):
        try:
            builder.download_and_prepare()
        except OSError:
            # TFDS renames its finished temporary folder. If the rename fails because another process was faster, the
            # set is there, and that is all we need.
            if not builder.data_path.exists():
                raise
    _log.debug("prepared %s: %s", builder.data_path, caught.getvalue())


@contextlib.contextmanager
def _damage_in_one_sentence(data_dir: str | Path | None) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # on a damaged file, TFDS, protobuf and ArrayRecord each raise their own exceptions
        sizes = " and ".join(f"{size} {split}" for split, size in SPLIT_SIZES.items())
        raise ValueError(
            f"digits/{Digits.VERSION} in {data_dir or 'the TFDS data_dir'} must hold {sizes} examples "
            f"(delete that folder and load again); got {type(error).__name__}: {error}"
        ) from error
