"""Nothing that a preset computes reads memory that nobody wrote: malloc fills every block before it is used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fednas_core.spaces.layers import Conv, Depthwise, stride_at
from fednas_core.spaces.registry import load, names
from fednas_core.spaces.space import Signature

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "geometry.py"
NO_GLIBC = 2


@pytest.fixture(scope="module")
def affected() -> dict[str, list[str]]:
    """What is wrong in each preset, for the smallest images: layers, and what training and evaluation make of them."""
    done = subprocess.run(
        [sys.executable, PROGRAM, "--quick"], capture_output=True, text=True, timeout=600, cwd=PROGRAM.parents[1]
    )
    if done.returncode == NO_GLIBC:
        pytest.skip(done.stdout)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def test_results_in_bf16_depend_on_nothing_but_what_was_written(affected: dict[str, list[str]]) -> None:
    assert affected == {name: [] for name in names()}


@pytest.mark.parametrize("name", names())
def test_no_preset_strides_over_a_single_pixel(name: str) -> None:
    space = load(name).for_data(Signature((1, 1, 1), 10))
    for arch in (space.smallest, space.largest):
        assert {layer.stride for layer in space.layers(arch) if isinstance(layer, Conv | Depthwise)} == {1}


def test_a_stride_halves_whatever_can_be_halved() -> None:
    assert [stride_at(size, 2) for size in (1, 2, 3, 8)] == [1, 2, 2, 2]
    assert stride_at(1, 1) == stride_at(8, 1) == 1
