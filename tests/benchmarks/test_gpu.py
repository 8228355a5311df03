"""The benchmark of a card: its part on the processor, clients as one batch, and rows that fail or no longer fit."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fednas_core.training.settings import TrainSettings

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")
CLIENTS = 2


@pytest.fixture(scope="module")
def gpu() -> Any:
    sys.path.append(str(BENCHMARKS))
    return importlib.import_module("gpu")


@pytest.fixture(autouse=True)
def random_images(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A small archive of images; no other data are read."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8), np.arange(200) % 10
    np.savez(tmp_path / "random.npz", x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    monkeypatch.setattr(gpu, "pixels", lambda count: (x[:count], y[:count], "random"))
    gpu.images.cache_clear()
    return tmp_path / "random.npz"


def test_every_row_is_written_and_a_failure_stays_in_its_own(
    gpu: Any, random_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = gpu.cohort(random_images, "cifar-light", clients=CLIENTS, examples=8, batch=8)
    jobs = (
        gpu.Job("absent", {**settings, "data.path": "absent.npz"}, "cpu", 1, 0),
        gpu.Job("tiny", settings, "cpu", 1, 0),
        gpu.Job("long", settings, "cpu", 1, 10_000),
    )
    record = gpu.Record(tmp_path / "rows.jsonl", 5_000)
    light = gpu.LIGHT[1]
    gpu.measure_all(record, gpu.Extent(CPU, [light], [(light, CLIENTS)], jobs, span=0, repeats=1, rounds=1))

    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    network, together, absent, tiny, long = rows
    assert {"published", "its ready", "app fp32"} <= set(network["medians"]) and not network["notes"]
    assert together["medians"]["plain"] > 0
    assert [row["job"] for row in (absent, tiny, long)] == ["absent", "tiny", "long"]
    assert "round_s" not in absent and "absent.npz" in absent["notes"][0]
    assert tiny["round_s"] > 0 and not tiny["notes"] and not tiny["failures"]
    assert "round_s" not in long and "skipped" in long["notes"][0]
    printed = capsys.readouterr()
    assert "absent.npz" in printed.err and "took: networks" in printed.out


def test_clients_as_one_batch_train_as_each_does_alone(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SETTINGS", TrainSettings(lr=0.1, clip=0.5))  # so that every step is clipped
    x, y = (part[:, :8] for part in gpu.ready_batches(CLIENTS, CPU))
    together = gpu.cohort_step(gpu.module_of(gpu.LIGHT[1], CPU), (x, y))
    alone = [gpu.single_step(gpu.module_of(gpu.LIGHT[1], CPU), (x[i], y[i])) for i in range(CLIENTS)]
    losses = [(float(together()), sum(float(step()) for step in alone) / CLIENTS) for _ in range(6)]
    for both, each in losses:
        assert both == pytest.approx(each, abs=0.02)
    assert losses[-1][0] < losses[0][0] - 0.1
