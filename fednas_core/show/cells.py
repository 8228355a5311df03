"""The rows of a report's tables, as text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from urllib.parse import quote

from fednas_core.base.metrics import Metric
from fednas_core.base.units import MISSING, count, few, milliseconds, size
from fednas_core.runs.record import HandedOver, ModelRow
from fednas_core.show.panel import SERIES
from fednas_core.show.read import RunData
from fednas_core.show.tested import TRAINED_ON

FILES = (("card", "card.md"), ("ONNX", "model.onnx"), ("weights", "weights.safetensors"))
"""The files of a model that a report links to."""


@dataclass(frozen=True, slots=True)
class ModelCells:
    """The row of a chosen model; `files` are names and links, `colour` the number of its colour."""

    device: str
    colour: int
    test: str
    validation: str
    budget: str
    macs: str
    params: str
    bytes: str
    latency: str
    error: str
    arch: str
    files: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ClientCells:
    """The row of a client: the model it was handed and how it does on the device, or the `reason` why it has none."""

    client: str
    budget: str
    reason: str
    held_out: bool = False
    value: str = MISSING
    tested: str = MISSING
    macs: str = MISSING
    bytes: str = MISSING
    latency: str = MISSING


@dataclass(frozen=True, slots=True)
class FailureCells:
    """A reason of failures: which clients gave it in which rounds, and how often."""

    reason: str
    clients: str
    rounds: str
    times: str


def model_cells(run: RunData, number: int, model: ModelRow) -> ModelCells:
    """Return the row of model number `number`, with links to those of its files that there are."""
    metric, device, files = run.metric, model.device, []
    if "/" not in device and "\\" not in device and "\0" not in device and device not in ("", ".", ".."):
        paths = {name: f"models/{device}/{file}" for name, file in FILES}
        files = [(name, quote(path)) for name, path in paths.items() if (run.folder / path).is_file()]
    return ModelCells(
        device=device,
        colour=number % len(SERIES),
        test=metric.text(metric.of(model.test)),
        validation=metric.text(metric.of(model.validation)),
        budget=model.budget,
        macs=count(model.macs),
        params=count(model.params),
        bytes=size(model.bytes),
        latency=milliseconds(model.latency_ms),
        error=MISSING if model.export_max_abs_error is None else f"{model.export_max_abs_error:.1e}",
        arch=json.dumps(model.arch, separators=(",", ":")),
        files=tuple(files),
    )


def client_cells(row: HandedOver, metric: Metric) -> ClientCells:
    """Return the row of a client."""
    model = row.model
    if model is None:
        return ClientCells(row.client, row.budget, row.reason)
    on = "held out" if model.held_out else "of its training"
    return ClientCells(
        client=row.client,
        budget=row.budget,
        reason="stored there" if model.stored else "",
        held_out=model.held_out,
        value=metric.text(metric.of(model.metrics)) + ("" if model.held_out else f" {TRAINED_ON}"),
        tested=f"{model.tested} {on}" if model.tested else MISSING,
        macs=count(model.macs),
        bytes=size(model.bytes),
        latency=milliseconds(model.latency_ms),
    )


def failure_cells(run: RunData) -> tuple[FailureCells, ...]:
    """Return failures grouped by reason, the most frequent first."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for number, client, reason in run.failures:
        groups.setdefault(reason, []).append((number, client))
    cells = []
    for reason, rows in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        clients = few(dict.fromkeys(client for _, client in rows))
        rounds = few(dict.fromkeys(str(number) for number, _ in rows))
        cells.append(FailureCells(reason, clients, rounds, str(len(rows))))
    return tuple(cells)
