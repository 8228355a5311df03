"""One exported model on disk: ``models/<device>/`` with arch.json, weights.safetensors, model.onnx and card.md.

A bundle is written aside, proved there (the reloaded weights give the same outputs, onnxruntime the same logits) and
renamed into place, so that a folder that exists is a model that works.
"""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fednas_core.base.errors import ArchError, ConfigError, ExportError
from fednas_core.base.values import Arch
from fednas_core.devices.latency import Latency
from fednas_core.export.card import card
from fednas_core.export.graph import INPUT, OUTPUT, Normalised, require, run_onnx, write_onnx
from fednas_core.spaces.registry import from_table
from fednas_core.spaces.space import Space

FORMAT = 1
"""Version of arch.json: raised when an older reader could no longer understand it."""
TOLERANCE = 1e-4
"""Largest difference allowed between onnxruntime's logits and PyTorch's, absolute up to logits of 1, relative above."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the card says beside the cost: how it was trained, accuracies from 0 to 1, latency; None: not measured."""

    data: str
    trained: str
    validation_accuracy: float | None = None
    test_accuracy: float | None = None
    latency: Latency | None = None


@dataclass(frozen=True, slots=True)
class ExportInput:
    """What one bundle is made of.

    `module` is the static float32 network of `arch`, with the tensor names of ``space.build(arch)``; it takes
    normalised images. `mean` and `std` (one value a channel) belong to pixels from 0 to 1. `samples` are real images,
    uint8 (n, channels, size, size), on which the outputs are compared.
    """

    device: str
    space: Space
    arch: Arch
    module: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    samples: Tensor
    facts: Facts


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished bundle: its folder, the largest difference of logits between onnxruntime and PyTorch, file sizes."""

    folder: Path
    max_abs_error: float
    samples: int
    bytes: Mapping[str, int] = field(default_factory=dict)


def export(item: ExportInput, folder: Path) -> Exported:
    """Write ``folder/<device>/``, replacing an older bundle only once the new one is complete and proved.

    Needs the extra 'export'. Raises `ExportError` where the parts do not fit together, outputs differ by more than
    `TOLERANCE` or the folder cannot be written; then nothing of the new bundle remains. `item.module` is not changed.
    """
    _check(item)
    for package in ("onnx", "onnxruntime"):
        require(package)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as scratch:
            made = Path(scratch) / item.device
            made.mkdir()
            error = _write(item, made)
            _replace(made, folder / item.device, Path(scratch) / "old")
    except (OSError, SafetensorError) as problem:
        raise ExportError(
            f"{folder / item.device}: the model cannot be written there ({problem}): make room or mend the disk, then "
            "resume the run or export again"
        ) from problem
    target = folder / item.device
    return Exported(target, error, len(item.samples), {path.name: path.stat().st_size for path in _files(target)})


def load_bundle(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model of a bundle and the content of its arch.json.

    The model takes float32 pixels from 0 to 1, shape (batch, channels, size, size), and returns logits
    (batch, classes); it normalises by itself. Raises `ExportError` naming the file that is missing or damaged.
    """
    meta = _read_meta(folder / "arch.json")
    try:
        space = from_table(dict(meta["space"]), str(meta["space"].get("name", "")))
        arch = space.arch(meta["arch"])
        mean, std = meta["preprocessing"]["mean"], meta["preprocessing"]["std"]
        network = space.build(arch).eval()
        model = Normalised(network, mean, std).eval()
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError, ArchError) as problem:
        raise ExportError(f"{folder / 'arch.json'}: does not describe a network of fednas ({problem})") from problem
    _load_weights(network, folder / "weights.safetensors")
    return model, meta


def _check(item: ExportInput) -> None:
    """Refuse parts that do not fit together."""

    def refuse(what: str) -> None:
        raise ExportError(f"model '{item.device}' cannot be exported: {what}")

    if not NAME.fullmatch(item.device):
        refuse("its name becomes a folder: allowed are up to 64 letters, digits, '.', '_' and '-', a letter first")
    space, samples = item.space, item.samples
    shape = space.signature.inputs
    if samples.dtype != torch.uint8 or samples.dim() != 4 or tuple(samples.shape[1:]) != shape or not len(samples):
        found = f"{str(samples.dtype).removeprefix('torch.')} {tuple(samples.shape)}"
        refuse(f"samples are {found}, needed is uint8 (n, {', '.join(map(str, shape))}) with n at least 1")
    for name, values in (("mean", item.mean), ("std", item.std)):
        if len(values) != shape[0]:
            refuse(f"{name} has {len(values)} values, the images have {shape[0]} channels")
    if not all(map(math.isfinite, (*item.mean, *item.std))) or min(item.std) <= 0:
        refuse(f"mean = {item.mean}, std = {item.std}: allowed are finite numbers, std above 0")
    for name, share in (("validation", item.facts.validation_accuracy), ("test", item.facts.test_accuracy)):
        if share is not None and not 0 <= share <= 1:
            refuse(f"{name} accuracy is {share}, allowed: 0 to 1")
    if len(item.classes) != space.signature.outputs:
        refuse(f"{len(item.classes)} class names for {space.signature.outputs} classes")
    for name, tensor in item.module.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            refuse(f"tensor '{name}' is {str(tensor.dtype).removeprefix('torch.')}, needed is float32")
        if not torch.isfinite(tensor).all():
            refuse(f"tensor '{name}' holds values that are not finite; training has diverged")


def _write(item: ExportInput, folder: Path) -> float:
    """Write the four files, prove them and return the largest difference of logits."""
    network = copy.deepcopy(item.module).cpu().eval()
    images = item.samples.cpu().float() / 255
    with torch.inference_mode():
        wanted = Normalised(network, item.mean, item.std)(images)
    meta = _meta(item)
    keep = {key: json.dumps(meta[key]) for key in ("arch", "space", "preprocessing", "classes")}
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "weights.safetensors", {"format": "pt", **keep})
    _write_json(folder / "arch.json", meta)

    model, _ = load_bundle(folder)
    with torch.inference_mode():
        if not torch.equal(model(images), wanted):
            raise ExportError(f"model '{item.device}': the saved weights give other outputs than the trained network")
    write_onnx(model, images, folder / "model.onnx")
    logits = run_onnx(folder / "model.onnx", images)
    error = float((logits - wanted).abs().max()) if logits.shape == wanted.shape else float("inf")
    if not error <= TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise ExportError(
            f"model '{item.device}': onnxruntime's logits differ from PyTorch's by up to {error:.2g}, allowed is "
            f"{TOLERANCE:g}; nothing was exported. Please report this with the architecture {item.arch}"
        )
    meta["checks"] = {"samples": len(images), "max_abs_error": error, "tolerance": TOLERANCE}
    _write_json(folder / "arch.json", meta)
    sizes = {path.name: path.stat().st_size for path in _files(folder)}
    (folder / "card.md").write_text(card(meta, sizes), encoding="utf-8")
    return error


def _meta(item: ExportInput) -> dict[str, Any]:
    """Return the content of arch.json."""
    space = item.space
    return {
        "format": FORMAT,
        "device": item.device,
        "arch": item.arch.to_json(),
        "space": space.to_json(),
        "input": {"name": INPUT, "shape": ["batch", *space.signature.inputs]},
        "output": {"name": OUTPUT, "shape": ["batch", space.signature.outputs]},
        "preprocessing": {"scale": "pixels / 255", "mean": list(item.mean), "std": list(item.std)},
        "classes": list(item.classes),
        "cost": space.cost(item.arch).to_json(),
        "facts": asdict(item.facts),
        "versions": {name: str(require(name).__version__) for name in ("torch", "onnx", "onnxruntime")},
    }


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as problem:
        raise ExportError(f"{path}: no such file; a model folder is runs/<id>/models/<device>") from problem
    except (OSError, ValueError) as problem:
        raise ExportError(f"{path}: cannot be read as JSON ({problem}); export the model again") from problem
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise ExportError(f"{path}: its format is {found!r}, this fednas reads {FORMAT}; export the model again")
    return meta


def _load_weights(network: nn.Module, path: Path) -> None:
    try:
        tensors = load_file(path)
    except FileNotFoundError as problem:
        raise ExportError(f"{path}: no such file; export the model again") from problem
    except (SafetensorError, OSError) as problem:
        raise ExportError(f"{path}: is damaged or cut short ({problem}); export the model again") from problem
    wanted = network.state_dict()
    for what, names in (("lacks", wanted.keys() - tensors.keys()), ("has the unknown", tensors.keys() - wanted.keys())):
        if names:
            raise ExportError(f"{path}: {what} tensor '{min(names)}'; it belongs to another architecture")
    for name, tensor in wanted.items():
        found = tensors[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            allowed = f"{tuple(tensor.shape)} {tensor.dtype}"
            raise ExportError(f"{path}: tensor '{name}' is {tuple(found.shape)} {found.dtype}, needed is {allowed}")
    network.load_state_dict(tensors)


def _replace(made: Path, target: Path, old: Path) -> None:
    """Rename `made` to `target`; what was there before goes to `old`, which is about to be deleted."""
    if target.exists():
        target.rename(old)
    try:
        made.rename(target)
    except OSError:
        if old.exists():
            shutil.move(old, target)
        raise


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
