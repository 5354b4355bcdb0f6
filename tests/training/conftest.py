"""Fixtures of the tests of training."""

import pytest
from toy_training import blobs, make_trainer

from nc_jax.data import LabelledArrays
from nc_jax.training import Trainer


@pytest.fixture(scope="session")
def train_set() -> LabelledArrays:
    return blobs(100)  # five steps of 24 an epoch, the last one mostly padding


@pytest.fixture(scope="session")
def test_set() -> LabelledArrays:
    return blobs(40, seed=1)


@pytest.fixture(scope="session")
def one_device() -> Trainer:
    return make_trainer(1)
