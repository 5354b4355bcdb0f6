"""What XLA is told before its first program."""

import os
import subprocess
import sys

import pytest

from nc_jax.study.xla import faster_convolutions

PROGRAM = """
from nc_jax.study.xla import faster_convolutions
import jax, jax.numpy as jnp
{}
convolve = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
for function, *shapes in ((convolve, (8, 16, 16, 32), (3, 3, 32, 32)), (jnp.matmul, (256, 256), (256, 256))):
    print("ynn" in jax.jit(function).lower(*map(jnp.ones, shapes)).compile().as_text())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("call", "expected"), [("", ["True", "True"]), ("faster_convolutions()", ["False", "True"])])
def test_convolutions_leave_ynnpack_and_products_stay(call, expected):
    # The flags of the tests would hide it.
    environment = os.environ | {"XLA_FLAGS": ""}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(call)], capture_output=True, text=True, check=True, env=environment
    )
    assert found.stdout.split() == expected


@pytest.mark.parametrize("flags", ["", "--xla_cpu_enable_fast_math=false"])
def test_flags_of_the_user_stay(monkeypatch, flags):
    monkeypatch.setenv("XLA_FLAGS", flags)
    faster_convolutions()
    faster_convolutions()
    assert os.environ["XLA_FLAGS"].startswith(flags)
    assert os.environ["XLA_FLAGS"].count("ynn") == 1


def test_a_choice_of_the_user_wins(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")
    faster_convolutions()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_experimental_ynn_fusion_type="


def test_an_unknown_version_gets_no_flag(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr("nc_jax.study.xla.metadata.version", lambda package: "1.0.0")
    faster_convolutions()
    assert os.environ["XLA_FLAGS"] == ""
