"""The model card: what the model is, for whom, what goes in and comes out, how to load it, numbers, limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fednas_core.base.units import MISSING, count, macs, milliseconds, percent, size


def card(meta: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    """Return the card of a bundle as Markdown, from its arch.json and the sizes of its files in bytes."""
    parts = (_purpose(meta), _input(meta), _loading(meta), _numbers(meta, sizes), _limits(meta))
    return "\n\n".join(parts) + "\n"


def plain(text: object) -> str:
    """Return text as one line that Markdown and HTML show as it is."""
    line = " ".join(str(text).split())
    for mark in "\\`*_[]|#":
        line = line.replace(mark, "\\" + mark)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _purpose(meta: Mapping[str, Any]) -> str:
    facts, space = meta["facts"], meta["space"]
    return (
        f"# {plain(meta['device'])}: an image classifier of {macs(meta['cost']['macs'])}\n\n"
        f"A convolutional network for {len(meta['classes'])} classes, taken out of the supernet of search space "
        f'`{space["name"]}` for devices of the kind "{plain(meta["device"])}". '
        f"Data: {plain(facts['data'])}. {plain(facts['trained'])}"
    )


def _input(meta: Mapping[str, Any]) -> str:
    shape = meta["input"]["shape"]
    names = ", ".join(plain(name) for name in meta["classes"][:100])
    more = f" and {len(meta['classes']) - 100} more (arch.json)" if len(meta["classes"]) > 100 else ""
    return (
        "## Input and output\n\n"
        f"- Input `{meta['input']['name']}`: float32, shape (batch, {', '.join(map(str, shape[1:]))}), "
        f"{'grey' if shape[1] == 1 else 'channels first,'} pixels **from 0 to 1** (bytes divided by 255). "
        "Normalisation is inside the model: do not normalise again.\n"
        f"- Output `{meta['output']['name']}`: float32, shape (batch, {len(meta['classes'])}), before softmax. "
        f"Classes in order: {names}{more}."
    )


def _loading(meta: Mapping[str, Any]) -> str:
    shape = ", ".join(map(str, meta["input"]["shape"][1:]))
    return f"""## How to load it

With onnxruntime, without fednas or PyTorch:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
images = np.zeros((1, {shape}), dtype=np.float32)  # your pixels, from 0 to 1
logits = session.run(["{meta["output"]["name"]}"], {{"{meta["input"]["name"]}": images}})[0]
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


def _numbers(meta: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    facts, cost, checks = meta["facts"], meta["cost"], meta["checks"]
    latency = facts["latency"]
    how = (
        MISSING
        if latency is None
        else f"{milliseconds(latency['median_ms'])} (10th to 90th percentile {milliseconds(latency['p10_ms'])} to "
        f"{milliseconds(latency['p90_ms'])}; batch {latency['batch']}, threads {latency['threads']}, "
        f"{latency['device']}, torch {latency['torch']})"
    )
    rows = (
        ("Accuracy on the test set", percent(facts["test_accuracy"])),
        ("Accuracy on the validation set", percent(facts["validation_accuracy"])),
        ("Multiply-accumulates, one image", macs(cost["macs"])),
        ("Parameters", count(cost["params"])),
        ("Weights, float32", size(cost["bytes"])),
        ("File model.onnx", size(sizes.get("model.onnx"))),
        ("Latency, measured where it was exported", how),
        (
            "Largest difference of a logit, onnxruntime against PyTorch",
            f"{checks['max_abs_error']:.1e} on {checks['samples']} real images",
        ),
    )
    return "## Numbers\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _limits(meta: Mapping[str, Any]) -> str:
    architecture = json.dumps(meta["arch"], separators=(",", ":"))
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    return (
        "## Limits\n\n"
        f"- It knows the {len(meta['classes'])} classes above and gives one of them for any image. Its outputs are "
        "not calibrated probabilities.\n"
        "- Accuracy holds for images like those of the data set named above; it was not measured on others, nor "
        "per group of people or devices.\n"
        "- Latency holds for the machine it was measured on; measure it on the device that will run the model.\n"
        "- Federated training keeps the data on the clients; the weights can still reveal something about them. "
        "This model comes with a privacy guarantee only where the training above states one.\n\n"
        f"Architecture: `{architecture}`. Made with {versions}."
    )
