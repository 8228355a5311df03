"""The command that says what this machine can do: its profile, the latency model of it, and what fits a budget."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fednas_core.base.errors import ConfigError, InfeasibleError
from fednas_core.cli.scoring import Space
from fednas_core.cli.show import Json, guard, millions, print_json, print_table
from fednas_core.devices.containers import available_cores

if TYPE_CHECKING:
    import torch

    from fednas_core.devices.info import Profile
    from fednas_core.devices.latency_model import LatencyModel
    from fednas_core.spaces.space import Elastic

PATH_BUDGETS = 120
"""Architectures to choose from: the fittest within each of so many budgets of MACs, in geometric steps."""


@guard
def profile(
    space: Space = "small",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where networks run.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Threads that compute.")] = 1,
    budget: Annotated[
        str | None, typer.Option(help="Also find the fittest network that keeps it: 20ms, 2M, 20ms+8MB.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure this device: cores, memory, throughput, and the latency of a space's networks, which a model predicts."""
    if threads > available_cores():
        raise ConfigError(f"--threads {threads}: allowed are 1 to {available_cores()}, the cores there are")
    from fednas_core.base.settings import read
    from fednas_core.devices.budgets import parse_budget
    from fednas_core.spaces.capabilities import elastic
    from fednas_core.spaces.registry import load

    chosen = elastic(load(space))
    if budget is not None:
        parse_budget(budget, chosen.cost(chosen.supernet).macs)
    from fednas_core.devices import profile as devices
    from fednas_core.devices.latency_model import LatencyModel
    from fednas_core.tasks.bench import device_of

    where = device_of(read({"device": device}))
    found = devices.profile(chosen, where, threads)
    model = LatencyModel.fit(chosen, found.probes)
    row = None if budget is None else _best_within(chosen, model, budget, where, threads)
    if as_json:
        about = {"error": model.error, "margin": model.margin, "held_out_ms": list(model.held_out)}
        more = {} if row is None else {"budget": row}
        print_json({"space": chosen.name, "profile": devices.to_json(found), "model": about, **more})
        return
    _show_device(found)
    _show_probes(chosen, found, model)
    if row is not None:
        _show_within(row)


def _best_within(space: Elastic, model: LatencyModel, text: str, device: torch.device, threads: int) -> dict[str, Any]:
    """Return the fittest architecture of a Pareto path that keeps the budget, predicted and measured."""
    import numpy as np
    import torch

    from fednas_core.devices.budgets import Allowance, parse_budget
    from fednas_core.devices.latency import measure
    from fednas_core.devices.probes import blank
    from fednas_core.search.fittest import fittest
    from fednas_core.search.path import rows_of

    budget = parse_budget(text, space.cost(space.supernet).macs)
    limit = Allowance(budget, space, model.upper_ms)
    least, most = (space.cost(arch).macs for arch in (space.smallest, space.largest))
    steps = np.geomspace(least, most, PATH_BUDGETS).round().astype(int).tolist()
    if least <= budget.macs < most:
        steps.append(int(budget.macs))
    rows = rows_of(space, [space.smallest, *fittest(space, steps), space.largest])
    fitting = [row for row in rows if limit.allows(row.arch)]
    if not fitting:
        raise InfeasibleError(
            f"--budget {text}: no network of space '{space.name}' keeps it here; the smallest takes "
            f"{model.upper_ms(space.smallest):.3g} ms at most, {millions(least)} MACs and "
            f"{millions(rows[0].cost.params)} parameters"
        )
    best = max(fitting, key=lambda r: (0.0, r.cost.macs) if math.isnan(r.fitness) else (r.fitness, -r.cost.macs))
    network = blank(space, best.arch, torch.zeros(best.cost.params, device=device))
    measured = measure(network, space.signature.inputs, threads=threads)
    return {
        "budget": str(budget),
        "arch": best.arch.to_json(),
        "network": space.describe(best.arch),
        **best.cost.to_json(),
        "predicted_ms": model.predict_ms(best.arch),
        "upper_ms": model.upper_ms(best.arch),
        "measured_ms": measured.median_ms,
        "kept": budget.allows(best.cost, measured.median_ms),
    }


def _show_device(found: Profile) -> None:
    rows = (
        ("computes on", found.device),
        ("cores", str(found.cores)),
        ("threads used", str(found.threads)),
        ("free memory", "unknown" if found.memory_mb is None else f"{found.memory_mb / 1e3:,.1f} GB"),
        ("training", f"{found.macs_per_second / 1e9:,.1f} G MACs a second in {found.precision}"),
        ("torch", found.probes[0].torch),
    )
    print_table(("this device", ""), rows)


def _show_probes(space: Elastic, found: Profile, model: LatencyModel) -> None:
    """Print the probes in rising order of MACs, each beside what a model says that never saw it."""
    held_out: list[float | None] = list(model.held_out) or [None] * len(found.probes)
    rows = []
    for probe, predicted in sorted(
        zip(found.probes, held_out, strict=True), key=lambda pair: space.cost(pair[0].arch).macs
    ):
        cost = space.cost(probe.arch)
        rows.append(
            (
                space.describe(probe.arch),
                millions(cost.macs),
                millions(cost.params),
                _ms(probe.median_ms),
                f"{probe.p10_ms:.2f} – {probe.p90_ms:.2f}",
                "-" if predicted is None else _ms(predicted),
                "-" if predicted is None else f"{predicted / probe.median_ms - 1:+.1%}",
            )
        )
    print_table(("network", "MACs", "parameters", "latency", "p10 – p90", "predicted", "error"), rows)
    repeats = sorted(probe.repeats for probe in found.probes)
    print(
        "network: channels of the stem, channels × blocks of each stage, mean expansion e\n"
        f"latency: one image, median of {repeats[0]} to {repeats[-1]} passes; predicted: by a model of the other probes"
    )
    if model.error is None:
        print("too few probes for a model that could be checked: against a budget, predictions count double")
    else:
        print(
            f"the latency model errs by {model.error:.1%} (median); against a budget, predictions count "
            f"{model.margin:.0%} more"
        )


def _show_within(row: dict[str, Any]) -> None:
    print()
    head = ("best network within", "MACs", "parameters", "size", "predicted", "at most", "measured", "")
    cells = (
        f"{row['budget']}: {row['network']}",
        millions(row["macs"]),
        millions(row["params"]),
        f"{row['bytes'] / 1e6:.2f} MB",
        *(_ms(row[key]) for key in ("predicted_ms", "upper_ms", "measured_ms")),
        "keeps the budget" if row["kept"] else "exceeds the budget",
    )
    print_table(head, [cells])
    print(f"--arch '{json.dumps(row['arch'], separators=(',', ':'))}'")


def _ms(time: float) -> str:
    return f"{time:.2f} ms"
