"""What a run says in the terminal: its greeting, a line for each round, the tables at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fednas_core.config import RunConfig
from fednas_core.export.units import few
from fednas_core.methods.registry import METHODS
from fednas_core.runs.folder import RunFolder
from fednas_core.tasks.bench import dataset_of, space_of, split_of


def greeting(config: RunConfig, run: RunFolder, done: int) -> str:
    """Return what is about to run, in a few lines."""
    data, space, parts = dataset_of(config), space_of(config), split_of(config)
    cost = space.cost(space.largest)
    sizes = [len(part) for part in parts.clients]
    spread = {
        "dirichlet": f"Dirichlet α = {config.data.alpha:g}",
        "classes": f"{config.data.classes_per_client} classes each",
    }
    lines = [
        f"run {run.id}" + (f", resumed after round {done}" if done else ""),
        f"method    {config.method}: {METHODS[config.method].title} ({METHODS[config.method].source})",
        f"space     {space.name}: up to {cost.macs / 1e6:.1f} M MACs, {cost.params / 1e6:.2f} M parameters, "
        f"normalisation '{space.norm}'",
        f"data      {data.name}: {sum(sizes)} training images over {len(sizes)} clients "
        f"({spread.get(config.data.partition, config.data.partition)}; {min(sizes)} to {max(sizes)} each), "
        f"{len(parts.validation)} to validate, {len(data.test.y)} to test",
        f"training  {config.rounds} rounds, {config.train.epochs} local epochs, seed {config.seed}",
    ]
    return "\n".join(lines)


def line(config: RunConfig, event: Mapping[str, Any]) -> str:
    """Return one round in one line."""
    text = (
        f"round {event['round']:>3}/{config.rounds}  loss {event['loss']:.3f}  accuracy {event['accuracy']:6.1%}  "
        f"up {event['bytes_up'] / 1e6:.1f} MB  {event['seconds']:.1f} s"
    )
    for row in event["evaluation"] or []:
        text += f"  {row['name']} {row['accuracy']:.1%}"
    if event["failures"]:
        text += "  failed: " + few([failure["client"] for failure in event["failures"]])
    return text


def table(models: Sequence[Mapping[str, Any]]) -> str:
    """Return the chosen models as a table for the terminal."""
    head = ("device", "budget", "MACs", "parameters", "size", "latency", "validation", "test", "export error")
    rows = [
        (
            str(m["device"]),
            str(m["budget"]),
            f"{m['macs'] / 1e6:.2f} M",
            f"{m['params'] / 1e6:.3f} M",
            f"{m['bytes'] / 1e6:.2f} MB",
            f"{m['latency_ms']:.2f} ms",
            f"{m['validation_accuracy']:.1%}",
            f"{m['test_accuracy']:.1%}",
            f"{m['export_max_abs_error']:.0e}",
        )
        for m in models
    ]
    return _aligned(head, rows)


def clients_table(rows: Sequence[Mapping[str, Any]], most: int = 20) -> str:
    """Return each client's own model and how it does there; of more than `most` clients, the first."""
    head = ("client", "budget", "MACs", "size", "latency there", "accuracy there", "")
    cells = [
        (
            str(row["client"]),
            str(row["budget"]),
            *(
                ("–", "–", "–", "–", str(row["reason"]))
                if row["reason"]
                else (
                    f"{row['macs'] / 1e6:.2f} M",
                    f"{row['bytes'] / 1e6:.2f} MB",
                    f"{row['latency_ms']:.2f} ms",
                    f"{row['accuracy']:.1%}",
                    ("on held-out images" if row["held_out"] else "on its training images")
                    + (", stored" if row["stored"] else ""),
                )
            ),
        )
        for row in rows[:most]
    ]
    more = f"\n… and {len(rows) - most} more in result.json" if len(rows) > most else ""
    return _aligned(head, cells) + more


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first two columns are text and whose others are figures."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def cell(i: int, text: str) -> str:
        return text.ljust(widths[i]) if i < 2 or i == len(head) - 1 and not head[i] else text.rjust(widths[i])

    lines = ["  ".join(cell(i, text) for i, text in enumerate(row)).rstrip() for row in [head, *rows]]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n" + "\n".join(lines)
