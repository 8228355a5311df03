"""What a run records, from the parts that a test is about: the rest is as plain as it can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fednas_core.base.metrics import ACCURACY
from fednas_core.base.typed import from_json, object_of, to_json
from fednas_core.runs.format import FORMAT, Head
from fednas_core.runs.record import Evaluated, HandedOver, ModelRow, Result, RoundEvent, Spread

Part = Mapping[str, Any]

EVENT: Part = {
    "round": 1, "loss": 1.0, "accuracy": 0.5, "bytes_up": 0, "bytes_down": 0, "client_macs": 0, "seconds": 1.0,
    "clients": [], "failures": [], "evaluation": None, "update_norm": None,
}  # fmt: skip
CLIENT: Part = {
    "client": "a", "role": "largest", "tier": "", "macs": 1, "params": 1, "examples": 1, "loss": 1.0, "accuracy": 0.5,
    "client_macs": 3, "seconds": 1.0, "bytes_up": 1, "bytes_down": 1,
}  # fmt: skip
SINGLE: Part = {"client": "a", "tier": "", "accuracy": 0.5, "loss": 1.0, "tested": 1}
TRIAL: Part = {
    "clients": 1, "mean": 0.5, "std": 0.0, "worst": 0.5, "worst_decile": 0.5, "best": 0.5, "tested": 1,
    "held_out": True, "tiers": {}, "each": [],
}  # fmt: skip
STORY: Part = {"stage": "compete", "iteration": 1, "round": 1, "of": 1, "alive": [], "over": False}
MODEL: Part = {
    "device": "phone", "budget": "1 M MACs", "budget_macs": 1_000_000, "arch": {}, "validation_accuracy": 0.9,
    "test_accuracy": 0.8, "macs": 1_000_000, "params": 1, "bytes": 4, "latency_ms": 1.0, "export_max_abs_error": 0.0,
}  # fmt: skip
OWN: Part = {
    "arch": {}, "macs": 1_000_000, "params": 1_000_000, "bytes": 4_000_000, "validation_accuracy": 0.9,
    "larger_accuracy": None, "accuracy": 0.5, "tested": 9, "held_out": True, "latency_ms": 1.0, "stored": False,
}  # fmt: skip
RESULT: Part = {
    "run": "r", "method": "fedper", "personal": [], "search": None, "rounds": 1, "unrecorded": 0, "models": [],
    "clients": [], "bytes_up": 0, "bytes_down": 0, "client_macs": 0, "failures": 0, "versions": {}, "seconds": {},
    "supernet": {"space": "small", "norm": "group", "macs": 1, "params": 1, "bytes": 4},
}  # fmt: skip


def head(kind: str = "") -> Head:
    """Return the head of a record whose search is of this kind."""
    return Head(FORMAT, (ACCURACY,), kind)


def event(found: Part, kind: str = "") -> RoundEvent:
    """Return an event with the keys of JSON that are given."""
    whole = {**EVENT, **found, "clients": [{**CLIENT, **row} for row in found.get("clients", ())]}
    if found.get("evaluation"):
        whole["evaluation"] = [object_of(evaluated(row)) for row in found["evaluation"]]
    if found.get("search"):
        told = found["search"]
        family = {"family": [told["winner"]]} if told.get("winner") else {}
        whole["search"] = {**STORY, **family, **told}
    return head(kind).event(whole, "a test")


def evaluated(found: Part) -> Evaluated:
    """Return a row of an evaluation."""
    whole = {"name": "network", "macs": 1, "accuracy": 0.5, "loss": 1.0, **found}
    if found.get("clients"):
        each = [{**SINGLE, **one} for one in found["clients"].get("each", ())]
        whole["clients"] = {**TRIAL, **found["clients"], "each": each}
    return from_json(Evaluated, whole, (ACCURACY.name,))


def model(**found: Any) -> ModelRow:
    """Return the row of a chosen model."""
    return from_json(ModelRow, {**MODEL, **found}, (ACCURACY.name,))


def handed(accuracy: float | None, budget: str = "no limit", **more: Any) -> HandedOver:
    """Return the row of a client that runs a model of this accuracy there."""
    found = {"client": "a", "budget": budget, "reason": "", "failed": False, **OWN, "accuracy": accuracy, **more}
    return from_json(HandedOver, found, (ACCURACY.name,))


def without(reason: str, client: str = "b", budget: str = "x") -> HandedOver:
    """Return the row of a client that runs no model."""
    return HandedOver(client=client, budget=budget, reason=reason, failed=False)


def result(models: Sequence[ModelRow] = (), clients: Sequence[HandedOver] = (), **more: Any) -> Result:
    """Return what a run came to."""
    rows = {"models": [object_of(row) for row in models], "clients": [object_of(row) for row in clients]}
    return from_json(Result, {**RESULT, **rows, **more}, (ACCURACY.name,))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return how accuracies spread, as JSON."""
    return object_of(Spread.of(values, ACCURACY))


def recorded(value: object) -> Any:
    """Return a value as it is recorded, in JSON."""
    return to_json(value)
