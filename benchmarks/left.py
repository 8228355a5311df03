"""What a run leaves in its folder: a digest of all of it but clocks and names, and what is missing or too much.

`one_history.py` compares digests of histories; `killed.py`, `writes.py` and `side_by_side.py` also ask that a run is
complete and that nothing unfinished lies about.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from fednas_core.runs import clock, events, owner
from fednas_core.runs.folder import RunFolder
from fednas_core.tasks.store import READABLE

CLOCKS = re.compile(r"(^|_)seconds$|^latency_ms$|^(median|p10|p90)_ms$")
"""Keys of what a clock has measured."""
MARKS = {"state.json": "events"}
"""Entries that are digests of what clocks are part of, by file: `faults` compares them with what they stand for."""
TIMES = re.compile(r"(?<![\w.])\d+(\.\d+)?(e[-+]?\d+)? (ms|s|min|h)\b( \d\d (s|min)\b)?")
"""Times as reports and cards tell them."""
NEEDED = (
    "config.toml", "events.jsonl", "checkpoint/state.json", "devices.json", "images.json", "result.json", clock.FILE,
    "report.html", "report.md",
)  # fmt: skip
BUNDLE = ("arch.json", "weights.safetensors", "model.onnx", "card.md")
UNFINISHED = re.compile(r"^\.|\.part$|\.tmp|^tmp")


def digest(run: RunFolder) -> str:
    """Return the first 12 hexadecimal digits of a SHA-256 digest of the names and contents of all files of a run."""
    found = hashlib.sha256()
    for path in sorted(run.path.rglob("*")):
        if path.is_file():
            found.update(f"\0{path.relative_to(run.path)}\0".encode())
            for part in content(path, run):
                found.update(part)
    return found.hexdigest()[:12]


def content(path: Path, run: RunFolder) -> Iterator[bytes]:
    """Yield what a file of a run holds, without clocks, names of the run and the folder that it is in."""
    if path.name == owner.FILE:  # which process, when and where
        return
    if path.name == clock.FILE:
        yield " ".join(json.loads(path.read_text())).encode()
    elif path.suffix in (".json", ".jsonl"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        for line in lines:
            value = json.loads(line)
            if path.name in MARKS:
                value.pop(MARKS[path.name])
            yield nameless(json.dumps(timeless(value), sort_keys=True), run).encode()
    elif path.suffix == ".safetensors":
        with safe_open(str(path), "pt") as file:
            yield json.dumps(file.metadata(), sort_keys=True).encode()
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                yield f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes()
    elif path.suffix in (".md", ".html", ".toml"):
        yield TIMES.sub("TIME", nameless(path.read_text(), run)).encode()
    else:
        yield path.read_bytes()


def nameless(text: str, run: RunFolder) -> str:
    """Return a text without the run's name and the folder that it is in."""
    return text.replace(run.id, "RUN").replace(str(run.path.parent), "FOLDER")


def timeless(value: Any) -> Any:
    """Return a JSON value without what clocks have measured."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if not CLOCKS.search(key)}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def faults(run: RunFolder, state: Path) -> list[str]:
    """Return what a run that has ended lacks, what lies about unfinished, and what does not fit together.

    `state` is the folder of private states, which keeps none of a run whose devices have no layers of their own.
    """
    there = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    models = [row["device"] for row in run.read_json("result.json")["models"]] if "result.json" in there else []
    needed = [*NEEDED, *(f"models/{device}/{name}" for device in models for name in BUNDLE)]
    found = [f"lacks {name}" for name in needed if name not in there]
    if not models:
        found.append("has no models")
    found += [
        f"has an unfinished {path.relative_to(run.path.parent)}"
        for path in [*run.path.rglob("*"), *run.path.parent.glob(f".*{run.id}*")]
        if UNFINISHED.search(path.name)
    ]
    if "checkpoint/state.json" in there:
        noted = run.read_json("checkpoint/state.json")
        mark = events.mark(run.path)
        if noted["events"] != {"bytes": mark.bytes, "sha256": mark.sha256}:
            found.append("has a checkpoint that does not belong to its events")
        if [path.name for path in run.path.glob("checkpoint/*.safetensors")] != [noted["tensors"]]:
            found.append(f"has other tensors than {noted['tensors']} beside its checkpoint")
    if "result.json" in there and not run.read_json("result.json").get("personal"):
        found += [f"has left private state in {path}" for path in state.glob(f"{run.id[:READABLE]}*")]
    return found
