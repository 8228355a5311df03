from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fednas_core.export.graph import Normalised, require, run_onnx, write_onnx


def test_normalisation_is_a_channels_own() -> None:
    model = Normalised(nn.Identity(), [0.0, 0.5], [1.0, 0.25])
    assert model(torch.ones(1, 2, 1, 1)).flatten().tolist() == [1.0, 2.0]


def test_one_sample_is_enough_for_any_batch(tmp_path: Path) -> None:
    model = Normalised(nn.Flatten(), [0.5], [0.5]).eval()
    write_onnx(model, torch.zeros(1, 1, 2, 2), tmp_path / "m.onnx")
    for batch in (1, 3):
        assert torch.equal(run_onnx(tmp_path / "m.onnx", torch.ones(batch, 1, 2, 2)), torch.ones(batch, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_require_returns_the_module() -> None:
    assert require("torch") is torch
