"""Digits, prepared once for all contracts."""

import pytest


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("tfds"))
