"""The exported graph: pixels from 0 to 1 in, logits out, normalisation inside, so that it cannot be forgotten."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fednas_core.errors import ExportError, MissingExtraError

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

    Raises `ExportError` where the exporter does not understand the network.
    """
    onnx = require("onnx")
    require("onnxscript")
    example = images[:1].expand(2, *images.shape[1:]).contiguous()
    with warnings.catch_warnings(), _Quiet("torch.onnx", "torch.export", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")
        try:
            free = ({0: torch.export.Dim("batch")},)
            traced = torch.export.export(model, (example,), dynamic_shapes=free, strict=False)
            program = torch.onnx.export(
                traced,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: "batch"},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise ExportError(f"{path.parent.name}: the network cannot be written as ONNX: {_line(error)}") from error
    if program is None:
        raise ExportError(f"{path.parent.name}: the ONNX exporter returned nothing; use another version of torch")
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del part.metadata_props[:]  # the exporter's traces: longer than small networks, and they name local paths
    onnx.save(proto, str(path))


def run_onnx(path: Path, images: Tensor) -> Tensor:
    """Return the logits (batch, classes) that onnxruntime computes on the CPU with one thread."""
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    logits = session.run([OUTPUT], {INPUT: images.numpy()})[0]
    return torch.from_numpy(np.array(logits))


class _Quiet:
    """Within this context the named loggers say only what went wrong."""

    def __init__(self, *names: str) -> None:
        self.loggers = [logging.getLogger(name) for name in names]
        self.levels: list[int] = []

    def __enter__(self) -> None:
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)


def _line(error: Exception) -> str:
    """Return the first line of an error's text."""
    return next(iter(str(error).splitlines()), type(error).__name__)
