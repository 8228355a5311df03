"""The exported graph: pixels from 0 to 1 in, logits out, normalisation inside, so that it cannot be forgotten."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fednas_core.base.errors import ExportError, MissingExtraError

OPSET = 18
"""ONNX operator set of exported graphs: read by onnxruntime 1.14 (2023) and later."""
INPUT, OUTPUT = "images", "logits"


class Normalised(nn.Module):
    """A network together with the normalisation it was trained under.

    `mean` and `std` hold one value a channel, of pixels from 0 to 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """Put `mean` and `std` (channels) in front of `network`."""
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """float32 pixels from 0 to 1 (batch, channels, height, width) to logits (batch, classes)."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def require(package: str) -> Any:
    """Import and return a package of the extra 'export', or raise `MissingExtraError`."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingExtraError(package, "export", "exporting a model") from error


def write_onnx(model: nn.Module, images: Tensor, path: Path) -> None:
    """Write `model` as one ONNX file, weights inside, batch axis free; `images` (batch, …) only give the shape.

    The graph is what one forward pass calls, so that nothing in `model` may depend on the values of its input. Torch's
    exporter that traces takes a fifth of a second for it, the one by way of `torch.export` three to six. Raises
    `ExportError` where the exporter does not understand the network.
    """
    require("onnx")
    example = images[:1].expand(2, *images.shape[1:]).contiguous()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                model,
                (example,),
                str(path),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
                opset_version=OPSET,
                dynamo=False,
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise ExportError(f"{path.parent.name}: the network cannot be written as ONNX: {_line(error)}") from error


def run_onnx(path: Path, images: Tensor) -> Tensor:
    """Return the logits (batch, classes) that onnxruntime computes on the CPU with one thread."""
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    logits = session.run([OUTPUT], {INPUT: images.numpy()})[0]
    return torch.from_numpy(np.array(logits))


def _line(error: Exception) -> str:
    """Return the first line of an error's text."""
    return next(iter(str(error).splitlines()), type(error).__name__)
