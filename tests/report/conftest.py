"""Run folders with plausible made-up numbers, to write reports of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.records import spread

HOSTILE = "<script>alert('x')</script>|$x^$\n_`*"
DEVICES = {"phone": (0.5e6, 0.955), "tablet": (1.5e6, 0.972), "workstation": (3.8e6, 0.983)}
TIERS = ("0.5M", "1.5M", "max")
CONFIG = """method = "deepfednas"
rounds = {rounds}
seed = 1
budgets = "phone=0.5M,tablet=1.5M,workstation=max"
"space.name" = "small"

[data]
source = "digits"
alpha = 1.0

[versions]
fednas = "0.1.0"
flwr = "1.41.0"
torch = "2.14.1"
"""


SECONDS = {"start": 6.0, "training": 100.0, "report": 12.4}


@pytest.fixture(scope="session")
def write_run() -> Callable[..., Path]:
    """Return the function that makes a run folder: see `make_run`."""
    return make_run


@pytest.fixture(scope="session")
def hostile() -> str:
    """Return a name that means something to HTML, Markdown and matplotlib."""
    return HOSTILE


def make_run(
    folder: Path,
    *,
    rounds: int = 30,
    clients: int = 10,
    name: str = "",
    done: bool = True,
    failing: bool = True,
    tested: str = "",
) -> Path:
    """Make a run folder; `name` is added to every device, client and reason.

    With `tested` clients tested networks, of which the server has complete ones ('beside' it) or has none ('alone').
    """
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(CONFIG.format(rounds=rounds))
    examples = rng.integers(60, 260, clients)
    skill = rng.normal(0, 0.03, clients)
    lines = [event(number, rounds, examples, skill, rng, name, failing) for number in range(1, rounds + 1)]
    for row in (row for line in lines for row in line["evaluation"] or () if tested):
        trial(row, clients, name, alone=tested == "alone")
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if done:
        points = frontier(rng)
        (folder / "frontier.json").write_text(json.dumps(points))
        content = result(folder, lines, points, name, clients)
        content |= {"models": [], "personal": ["head", "stages.2.1"]} if tested == "alone" else {}
        (folder / "result.json").write_text(json.dumps(content))
        (folder / "seconds.json").write_text(json.dumps(SECONDS))
    return folder


def event(
    number: int, rounds: int, examples: Any, skill: Any, rng: np.random.Generator, name: str, failing: bool
) -> dict[str, Any]:
    """Return one line of events.jsonl."""
    progress = 1 - float(np.exp(-4.0 * number / rounds))
    rows, failures = [], []
    for i, count in enumerate(examples):
        if failing and rng.random() < 0.02:
            reason = rng.choice(["no answer within 600 s", "tensor 'head.weight' holds values that are not finite"])
            failures.append({"client": f"{i}{name}", "reason": f"{reason}{name}"})
            continue
        macs = int(rng.choice([0.4e6, 1.2e6, 3.7e6]))
        accuracy = float(np.clip(0.1 + 0.86 * progress + skill[i] + rng.normal(0, 0.02), 0, 1))
        bytes_up = macs // 3
        rows.append(
            {
                "client": f"{i}{name}", "role": ["largest", "smallest", "path"][i % 3], "tier": "", "macs": macs,
                "params": macs // 12, "examples": int(count), "loss": 2.3 * (1 - progress) + 0.05,
                "accuracy": accuracy,
                "client_macs": macs * int(count) * 6, "seconds": 0.4, "bytes_up": bytes_up,
                "bytes_down": bytes_up + 900,
            }
        )  # fmt: skip
    evaluation = None
    if number % 5 == 0 or number == rounds:
        evaluation = [
            {"name": f"{device}{name}", "macs": int(macs), "loss": 2.3 * (1 - progress) + 0.3 - top / 5,
             "accuracy": float(0.1 + (top - 0.1) * progress + rng.normal(0, 0.005))}
            for device, (macs, top) in DEVICES.items()
        ]  # fmt: skip
    return {
        "round": number,
        "loss": float(np.mean([row["loss"] for row in rows])) if rows else 0.0,
        "accuracy": float(np.mean([row["accuracy"] for row in rows])) if rows else 0.0,
        "bytes_up": sum(row["bytes_up"] for row in rows),
        "bytes_down": sum(row["bytes_down"] for row in rows),
        "client_macs": sum(row["macs"] * row["examples"] * 6 for row in rows),
        "seconds": 3.4,
        "clients": rows,
        "failures": failures,
        "evaluation": evaluation,
        "update_norm": None,
    }


def trial(row: dict[str, Any], clients: int, name: str, alone: bool) -> None:
    """Add to a row of an evaluation what the clients found: each of a tier tests the networks that it allows."""
    tiers = TIERS[list(DEVICES).index(row["name"].removesuffix(name)) :]
    each = [
        {"client": f"{i}{name}", "tier": f"{tier}{name}", "accuracy": max(0.0, row["accuracy"] - 0.01 * i), "loss": 1.0,
         "tested": 20 + i}
        for i in range(clients) if (tier := TIERS[i % 3]) in tiers
    ]  # fmt: skip
    if not each:
        return
    found = {tier: [one["accuracy"] for one in each if one["tier"] == f"{tier}{name}"] for tier in tiers}
    row["clients"] = {
        **spread([one["accuracy"] for one in each]), "tested": 100, "held_out": True, "each": each,
        "tiers": {f"{tier}{name}": spread(values) for tier, values in found.items() if values},
    }  # fmt: skip
    if alone:
        row["accuracy"] = row["clients"]["mean"]


def frontier(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return the content of frontier.json."""
    points = []
    best = 0.0
    for macs in np.geomspace(0.13e6, 3.7e6, 60):
        accuracy = float(min(0.985, 0.985 - 0.12 * np.exp(-macs / 0.5e6) + rng.normal(0, 0.004)))
        on = accuracy > best
        best = max(best, accuracy)
        params = int(macs / 12 * rng.uniform(0.8, 1.3))
        arch = {"d": [0, 1, 1], "e": [0.25, 0.5, 1.0, 0.5, 0.25, 1.0], "w": [0, 1, 2, 1]}
        points.append({"arch": arch, "macs": int(macs), "params": params, "bytes": 4 * params, "fitness": 1000.0,
                       "validation_accuracy": accuracy, "on_frontier": on})  # fmt: skip
    return points


def result(folder: Path, lines: list[Any], points: list[Any], name: str, clients: int) -> dict[str, Any]:
    """Return the content of result.json: for each device the best network of the frontier within its budget."""
    models = []
    for device, (budget, _) in DEVICES.items():
        best = max((p for p in points if p["macs"] <= budget), key=lambda p: p["validation_accuracy"])
        shared = {key: best[key] for key in ("arch", "macs", "params", "bytes", "validation_accuracy")}
        models.append({"device": f"{device}{name}", "budget": f"{budget / 1e6:g} M MACs", "budget_macs": int(budget),
                       **shared, "test_accuracy": best["validation_accuracy"] - 0.004, "latency_ms": best["macs"] / 6e6,
                       "export_max_abs_error": 3.2e-7})  # fmt: skip
    handed = [{"client": f"edge-{i:02d}{name}", "budget": "20 ms", "reason": "", "macs": 900_000, "params": 80_000,
               "bytes": 320_000, "validation_accuracy": 0.9, "accuracy": 0.5 + 0.04 * i, "tested": 30 + i,
               "held_out": True, "latency_ms": 12.5, "stored": i == 0} for i in range(clients)]  # fmt: skip
    handed.append({"client": "lost", "budget": "1 ms", "reason": f"went away{name}"})
    totals = {key: sum(line[key] for line in lines) for key in ("bytes_up", "bytes_down", "client_macs")}
    failures = sum(len(line["failures"]) for line in lines)
    return {
        "run": folder.name, "method": "deepfednas", "rounds": len(lines), **totals,
        "seconds": {"total": 118.4, **SECONDS},
        "personal": [], "search": "fitness", "unrecorded": 0, "models": models,
        "clients": handed, "versions": {"fednas": "0.1.0"},
        "supernet": {"space": "small", "norm": "group", "macs": 3_738_048, "params": 392_866, "bytes": 1_571_464},
        "failures": failures,
    }  # fmt: skip
