"""The model card: what the model is, for whom, what goes in and comes out, how to load it, numbers, limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from fednas_core.base.metrics import ACCURACY, Metric, Metrics
from fednas_core.base.typed import from_json, measured
from fednas_core.base.units import MISSING, count, macs, milliseconds, size


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An input or output of a model: its name, and its shape with ``batch`` first."""

    name: str
    shape: tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What the model costs: see `fednas_core.base.values.Cost`."""

    macs: int
    params: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """How long one batch took where the model was exported: see `fednas_core.devices.latency.Latency`."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    batch: int
    threads: int
    device: str
    torch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of the model: how it was trained and how good it is; None: not measured."""

    data: str
    trained: str
    validation: Metrics = field(metadata=measured("validation_"))
    test: Metrics = field(metadata=measured("test_"))
    latency: Timed | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """How far the exported graph's outputs are from the network's, and on how many samples that was found."""

    max_abs_error: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What of an ``arch.json`` its card tells."""

    device: str
    arch: Mapping[str, object]
    space: Mapping[str, object]
    input: Port
    output: Port
    classes: tuple[str, ...]
    cost: Costs
    facts: Known
    checks: Checks
    versions: Mapping[str, str]


def card(meta: Mapping[str, object], sizes: Mapping[str, int], metric: Metric = ACCURACY) -> str:
    """Return the card of a bundle as Markdown, from its arch.json and the sizes of its files in bytes.

    Raises `FieldError`, naming the field, if it is none.
    """
    model = from_json(Model, meta, (metric.name,))
    parts = (_purpose(model), _input(model), _loading(model), _numbers(model, sizes, metric), _limits(model, metric))
    return "\n\n".join(parts) + "\n"


def plain(text: object) -> str:
    """Return text as one line that Markdown and HTML show as it is."""
    line = " ".join(str(text).split())
    for mark in "\\`*_[]|#":
        line = line.replace(mark, "\\" + mark)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _purpose(model: Model) -> str:
    return (
        f"# {plain(model.device)}: an image classifier of {macs(model.cost.macs)}\n\n"
        f"A convolutional network for {len(model.classes)} classes, taken out of the supernet of search space "
        f'`{model.space["name"]}` for devices of the kind "{plain(model.device)}". '
        f"Data: {plain(model.facts.data)}. {plain(model.facts.trained)}"
    )


def _input(model: Model) -> str:
    shape = model.input.shape
    names = ", ".join(plain(name) for name in model.classes[:100])
    more = f" and {len(model.classes) - 100} more (arch.json)" if len(model.classes) > 100 else ""
    return (
        "## Input and output\n\n"
        f"- Input `{model.input.name}`: float32, shape (batch, {', '.join(map(str, shape[1:]))}), "
        f"{'grey' if shape[1] == 1 else 'channels first,'} pixels **from 0 to 1** (bytes divided by 255). "
        "Normalisation is inside the model: do not normalise again.\n"
        f"- Output `{model.output.name}`: float32, shape (batch, {len(model.classes)}), before softmax. "
        f"Classes in order: {names}{more}."
    )


def _loading(model: Model) -> str:
    shape = ", ".join(map(str, model.input.shape[1:]))
    return f"""## How to load it

With onnxruntime, without fednas or PyTorch:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
images = np.zeros((1, {shape}), dtype=np.float32)  # your pixels, from 0 to 1
logits = session.run(["{model.output.name}"], {{"{model.input.name}": images}})[0]
```

With fednas, as a PyTorch module (to train further, or to export elsewhere):

```python
from pathlib import Path

import torch
from fednas_core.export.bundle import load_bundle

model, meta = load_bundle(Path("."))
logits = model(torch.zeros(1, {shape}))  # your pixels, from 0 to 1
label = meta["classes"][int(logits[0].argmax())]
```"""


def _numbers(model: Model, sizes: Mapping[str, int], metric: Metric) -> str:
    facts, cost, checks = model.facts, model.cost, model.checks
    latency = facts.latency
    how = (
        MISSING
        if latency is None
        else f"{milliseconds(latency.median_ms)} (10th to 90th percentile {milliseconds(latency.p10_ms)} to "
        f"{milliseconds(latency.p90_ms)}; batch {latency.batch}, threads {latency.threads}, "
        f"{latency.device}, torch {latency.torch})"
    )
    rows = (
        (f"{metric.title} on the test set", metric.text(metric.of(facts.test))),
        (f"{metric.title} on the validation set", metric.text(metric.of(facts.validation))),
        ("Multiply-accumulates, one image", macs(cost.macs)),
        ("Parameters", count(cost.params)),
        ("Weights, float32", size(cost.bytes)),
        ("File model.onnx", size(sizes.get("model.onnx"))),
        ("Latency, measured where it was exported", how),
        (
            "Largest difference of a logit, onnxruntime against PyTorch",
            f"{checks.max_abs_error:.1e} on {checks.samples} real images",
        ),
    )
    return "## Numbers\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _limits(model: Model, metric: Metric) -> str:
    architecture = json.dumps(model.arch, separators=(",", ":"))
    versions = ", ".join(f"{name} {version}" for name, version in model.versions.items())
    return (
        "## Limits\n\n"
        f"- It knows the {len(model.classes)} classes above and gives one of them for any image. Its outputs are "
        "not calibrated probabilities.\n"
        f"- {metric.title} holds for images like those of the data set named above; it was not measured on others, nor "
        "per group of people or devices.\n"
        "- Latency holds for the machine it was measured on; measure it on the device that will run the model.\n"
        "- Federated training keeps the data on the clients; the weights can still reveal something about them. "
        "This model comes with a privacy guarantee only where the training above states one.\n\n"
        f"Architecture: `{architecture}`. Made with {versions}."
    )
