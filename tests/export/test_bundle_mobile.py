"""Mobile networks as ONNX: resizing, h-swish, squeeze-excite, kernel transforms and every normalisation."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from contracts.mobile import toy_mobile

from fednas_core.export.bundle import ExportInput, Facts, export, load_bundle


@pytest.mark.parametrize("norm", ["batch", "parametric"])
def test_a_mobile_network_is_exported_with_equal_outputs(norm: str, tmp_path: Path) -> None:
    space = toy_mobile(norm=norm, transforms=norm != "parametric", tail=(24, 32), activation="h-swish")
    arch = space.arch({**space.largest.to_json(), "r": [0], "k": [0, 1, 0, 1]})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = space.build(arch)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        module(torch.randn(8, 2, 9, 9))
        samples = torch.randint(0, 256, (5, 2, 9, 9), dtype=torch.uint8)
    item = ExportInput(
        device="phone",
        space=space,
        arch=arch,
        module=module,
        mean=(0.5, 0.25),
        std=(0.2, 0.4),
        classes=("cat", "dog", "fish"),
        samples=samples,
        facts=Facts(data="made-up", trained="fedsup, 3 rounds."),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = export(item, tmp_path)
    assert result.max_abs_error <= 1e-4 and result.samples == 5
    model, meta = load_bundle(result.folder)
    assert space.arch(meta["arch"]) == arch
    with torch.inference_mode():
        logits = model(samples.float() / 255)
    assert logits.shape == (5, 3) and logits.std(0).min() > 1e-3
