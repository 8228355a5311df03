"""What a run leaves: a digest that nothing escapes but clocks and names, and faults of what is missing or too much."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.records import event
from safetensors.torch import save_file

from fednas_core.base.settings import read
from fednas_core.runs.clock import FILE
from fednas_core.runs.creation import create
from fednas_core.runs.events import mark
from fednas_core.runs.folder import RunFolder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def left() -> Any:
    sys.path.append(str(BENCHMARKS))
    return importlib.import_module("left")


def ended(root: Path, seconds: float = 2.0, loss: float = 1.0) -> RunFolder:
    """Return a run as it is left: what is told of it depends on clocks and on its name."""
    run = create(read({"output": str(root), "method": "deepfednas"}))
    run.append_event(event({"loss": loss, "seconds": seconds}))
    (run.path / "checkpoint").mkdir()
    save_file({"x": torch.ones(3)}, run.path / "checkpoint" / "supernet-000001.safetensors", {"a": "b"})
    state = {"round": 1, "tensors": "supernet-000001.safetensors", "events": asdict(mark(run.path))}
    (run.path / "checkpoint" / "state.json").write_text(json.dumps(state))
    told = f"Run {run.id} in {root}: {seconds} s, latency 0.2{seconds:.0f} ms, 7 rounds"
    for name in ("report.md", "report.html"):
        (run.path / name).write_text(told)
    run.write_json("result.json", {"run": run.id, "models": [{"device": "phone", "latency_ms": seconds}]})
    run.write_json(FILE, {"start": seconds})
    for name in ("devices.json", "images.json"):
        run.write_json(name, {})
    (run.path / "models" / "phone").mkdir(parents=True)
    save_file({"x": torch.ones(3)}, run.path / "models" / "phone" / "weights.safetensors")
    (run.path / "models" / "phone" / "model.onnx").write_bytes(b"graph")
    (run.path / "models" / "phone" / "card.md").write_text(f"{seconds} ms")
    (run.path / "models" / "phone" / "arch.json").write_text(json.dumps({"facts": {"latency": {"p10_ms": seconds}}}))
    return run


def test_runs_that_differ_by_clocks_and_names_have_one_digest_and_no_fault(left: Any, tmp_path: Path) -> None:
    one, same = ended(tmp_path / "one"), ended(tmp_path / "same", seconds=9.5)
    other = ended(tmp_path / "other", loss=1.0 + 1e-12)
    assert left.digest(one) == left.digest(same) != left.digest(other)
    assert left.faults(one, tmp_path) == left.faults(same, tmp_path) == []


def write(name: str, content: bytes) -> Callable[[RunFolder], None]:
    return lambda run: (run.path / name).write_bytes(content) and None


def remove(name: str) -> Callable[[RunFolder], None]:
    return lambda run: (run.path / name).unlink()


def rename(run: RunFolder) -> None:
    (run.path / "models" / "phone").rename(run.path / "models" / "tablet")


@pytest.mark.parametrize(
    "change",
    [
        *(remove(name) for name in ("report.html", "report.md", "config.toml", "models/phone/card.md")),
        write("models/phone/model.onnx", b"garbage"),
        write("report.md", b"another story"),
        write("models/phone/card.md", b"another card"),
        write("config.toml", b"[settings]\nrounds = 7\n"),
        write(".report.md.0123abcd.part", b""),
        rename,
    ],
)
def test_whatever_else_differs_has_another_digest(left: Any, tmp_path: Path, change: Callable[..., None]) -> None:
    run = ended(tmp_path / "runs")
    before = left.digest(run)
    change(run)
    assert left.digest(run) != before


@pytest.mark.parametrize("name", ["report.html", "report.md", "devices.json", "models/phone/card.md", FILE])
def test_what_is_missing_is_a_fault(left: Any, tmp_path: Path, name: str) -> None:
    run = ended(tmp_path / "runs")
    remove(name)(run)
    assert left.faults(run, tmp_path) == [f"lacks {name}"]


def test_what_is_unfinished_or_does_not_fit_is_a_fault(left: Any, tmp_path: Path) -> None:
    run, state = ended(tmp_path / "runs"), tmp_path / "state"
    (state / f"{run.id}-0123456789abcdef").mkdir(parents=True)
    assert "private state" in left.faults(run, state)[0]
    shutil.rmtree(state)
    (run.path / "models" / ".export-abc").mkdir()
    assert left.faults(run, state) == [f"has an unfinished {run.id}/models/.export-abc"]
    (run.path / "models" / ".export-abc").rmdir()
    run.append_event(event({"round": 2}))
    assert left.faults(run, state) == ["has a checkpoint that does not belong to its events"]
