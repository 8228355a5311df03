"""What every test shares: one torch thread, the folder of contracts on the path, and the smallest run there is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `from contracts.method import MethodContract`
torch.set_num_threads(1)

TINY_SPACE = """
stem = 8
stages = [8, 16]
strides = [1, 2]
widths = [0.5, 1.0, 2.0]
expansions = [0.5, 1.0]
extra_blocks = 1
image_size = 8
in_channels = 1
classes = 10
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_space_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search space of 8×8 images whose largest network trains in milliseconds."""
    path = tmp_path_factory.mktemp("spaces") / "tiny.toml"
    path.write_text(TINY_SPACE)
    return path


@pytest.fixture
def tiny_pairs(tiny_space_file: Path, tmp_path: Path) -> dict[str, Any]:
    """The flat settings of a run of seconds: 200 digits, four clients, two rounds, in this process."""
    from contracts.samples import TINY

    return {**TINY, "output": str(tmp_path / "runs"), "space.name": str(tiny_space_file)}
