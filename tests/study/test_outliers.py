"""Sets of outliers: the images are what they are said to be, and every score has its numbers."""

import numpy as np
import pytest
import sklearn.metrics

from nc_jax.data import LabelledArrays, glyphs
from nc_jax.study import outliers
from nc_jax.study.data import Data
from nc_jax.study.outputs import Outputs

TEST = glyphs.load("test", num_classes=3)
DATA = Data(TEST, TEST, None, None, 28)


def test_other_characters_are_those_after_the_known_ones():
    found = outliers.outliers_of("characters", DATA, "glyphs")
    assert found.inputs.shape == (40 * outliers.CHARACTERS, 28, 28, 1)
    later = glyphs.load("test", num_classes=4)
    np.testing.assert_array_equal(found.inputs[:40], later.inputs[later.labels == 3])
    among = outliers.outliers_of("characters", DATA, "idx:fashion")
    np.testing.assert_array_equal(among.inputs[:120], TEST.inputs)


def test_scrambled_images_have_the_same_tiles_in_another_order():
    found = np.asarray(outliers.outliers_of("scrambled", DATA, "glyphs").inputs)[..., 0]
    assert found.shape == TEST.inputs.shape[:3]
    tiles = [
        sorted(image[i : i + 7, j : j + 7].tobytes() for i in range(0, 28, 7) for j in range(0, 28, 7))
        for image in (found[5], np.ascontiguousarray(TEST.inputs[5, ..., 0]))
    ]
    assert tiles[0] == tiles[1]
    assert (found != TEST.inputs[..., 0]).reshape(len(found), -1).any(axis=1).all()


def test_handwritten_digits_fill_the_middle_as_in_mnist():
    found = np.asarray(outliers.outliers_of("digits", DATA, "glyphs").inputs)[..., 0]
    assert found.shape == (1797, 28, 28)
    assert found.dtype == np.uint8
    assert found[:, 4:24, 4:24].max() > 200
    border = found.copy()
    border[:, 4:24, 4:24] = 0
    assert not border.any()


RNG = np.random.default_rng(0)
FRAME = RNG.normal(size=(8, 3)).astype(np.float32)


def examples(features, labels):
    features = features.astype(np.float32)
    return Outputs(features @ FRAME, features, 3 * np.linalg.norm(features, axis=1), labels)


@pytest.mark.slow
def test_every_score_has_its_numbers():
    labels = np.arange(60) % 3
    train, test = (examples(4 * FRAME.T[labels] + RNG.normal(size=(60, 8)), labels) for _ in range(2))
    near, far = (examples(scale * RNG.normal(size=(40, 8)), np.zeros(40, int)) for scale in (2, 0.01))
    found = outliers.detection(train, test, {"near": near, "far": far}, FRAME, np.zeros(3, np.float32))
    assert found.keys() == {f"nc5/{name}" for name in ("near", "far")} | {
        f"{kind}/{name}/{score}" for kind in ("auroc", "fpr95") for name in ("near", "far") for score in outliers.SCORES
    }
    assert all(0 <= value <= 1 for value in found.values())
    assert found["auroc/far/length"] == found["auroc/far/energy"] == 1
    assert found["fpr95/far/length"] == 0
    assert found["auroc/near/neco"] > 0.8
    labels = np.repeat([1, 0], [60, 40])
    exact = sklearn.metrics.roc_auc_score(labels, np.concatenate([test.logits.max(axis=1), near.logits.max(axis=1)]))
    np.testing.assert_allclose(found["auroc/near/logit"], exact, atol=1e-6)


def test_other_images_and_unknown_sets_are_refused():
    small = LabelledArrays(np.zeros((2, 8, 8, 1), np.uint8), np.arange(2), 2)
    with pytest.raises(ValueError, match=r"^outliers are images of shape \(28, 28, 1\); got .* of shape \(8, 8, 1\)$"):
        outliers.check_images(DATA._replace(test=small))
    with pytest.raises(
        ValueError, match=r"^a set of outliers must be one of characters, digits, scrambled; got 'noise'$"
    ):
        outliers.outliers_of("noise", DATA, "glyphs")
