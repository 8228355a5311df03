"""What a run says in the terminal at its end: tables of the chosen models and of the clients' own."""

from __future__ import annotations

from collections.abc import Sequence

from fednas_core.base.metrics import Metric
from fednas_core.base.units import MISSING, few
from fednas_core.runs.record import HandedOver, ModelRow, OwnModel, Result
from fednas_core.show.story import known_of, spent, spread_of, tiers_of
from fednas_core.show.tested import TRAINED_ON, deviation


def table(models: Sequence[ModelRow], metric: Metric) -> str:
    """Return the chosen models as a table for the terminal."""
    head = ("device", "budget", "MACs", "parameters", "size", "latency", "validation", "test", "export error")
    rows = [
        (
            m.device,
            m.budget,
            f"{m.macs / 1e6:.2f} M",
            f"{m.params / 1e6:.3f} M",
            f"{m.bytes / 1e6:.2f} MB",
            _milliseconds(m.latency_ms),
            metric.brief(metric.of(m.validation)),
            metric.brief(metric.of(m.test)),
            MISSING if m.export_max_abs_error is None else f"{m.export_max_abs_error:.0e}",
        )
        for m in models
    ]
    return _aligned(head, rows)


def clients_table(rows: Sequence[HandedOver], metric: Metric, most: int = 20) -> str:
    """Return each client's own model and how it does there; of more than `most` clients, the first."""
    head = ("client", "budget", "MACs", "size", "latency there", f"{metric.title.lower()} there", "")
    cells = [_client(row, metric) for row in rows[:most]]
    more = f"\n… and {len(rows) - most} more in result.json" if len(rows) > most else ""
    return _aligned(head, cells) + more + _spread(rows, metric)


def _client(row: HandedOver, metric: Metric) -> tuple[str, ...]:
    model = row.model
    if model is None:
        return (row.client, row.budget, *(MISSING,) * 4, row.reason)
    return (
        row.client,
        row.budget,
        f"{model.macs / 1e6:.2f} M",
        f"{model.bytes / 1e6:.2f} MB",
        _milliseconds(model.latency_ms),
        metric.brief(metric.of(model.metrics)),
        _where(model) + (", stored" if model.stored else "") + _no_larger(model, metric),
    )


def _milliseconds(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f} ms"


def _spread(rows: Sequence[HandedOver], metric: Metric) -> str:
    """Return how the clients' own models do: a line over all of them, and one for each budget if there are several."""
    handed = [row for row in rows if row.model]
    if not handed:
        return "\n\nno client runs a model"
    known = known_of(rows, metric)
    if not known:
        return f"\n\n{len(handed)} of {len(rows)} clients run a model; none had an image to test it on"
    tested = "" if len(known) == len(handed) else f", {len(known)} tested it"
    told = {f"{len(handed)} of {len(rows)} clients run a model{tested}": spread_of(known, metric)}
    for tier, found in tiers_of(known, metric).items():
        told[f"  {tier}: {found.clients}"] = found
    width = max(map(len, told))
    where = "" if all(model.held_out for _, model in known) else f"  ({TRAINED_ON})"
    text = "\n"
    for name, found in told.items():
        mean, worst = metric.brief(found.mean), metric.brief(found.worst_decile)
        text += f"\n{name.ljust(width)}  mean {mean:>6}  worst tenth {worst:>6}  "
        text += f"spread {deviation(found, metric):>4}{' points' * bool(metric.unit)}{where}"
    return text


def _where(model: OwnModel) -> str:
    """Return on which images a client's model was tested."""
    if not model.tested:
        return "no image to spare for a test"
    images = f"{model.tested} image" + ("s" if model.tested > 1 else "")
    return f"on {images} held out" if model.held_out else f"on {images} that it trained on"


def _no_larger(model: OwnModel, metric: Metric) -> str:
    """Return why a client has no larger model although its budget has room for one, '' if it has the largest."""
    larger, own = metric.of(model.larger), metric.of(model.validation)
    if larger is None:
        return ""
    if larger == own:
        return "; larger ones are as accurate on the validation images"
    return f"; larger ones reach {metric.brief(larger)} on the validation images, this one {metric.brief(own)}"


def ending(result: Result, metric: Metric) -> str:
    """Return what a run left, from its result: the chosen models or why there are none, and the clients' own."""
    told = []
    if result.models:
        told.append(table(result.models, metric))
    elif result.personal:
        told.append(f"\n{kept(result.personal)}")
    if result.clients:
        told.append(clients_table(result.clients, metric))
    told.append(f"\ntime  {spent(result.seconds)}")
    return "\n".join(told)


def lacking(result: Result) -> str:
    """Return which clients have no model that should have one, and why; '' if none."""
    failed = [f"{row.client} ({row.reason})" for row in result.clients if row.failed]
    return f"without the model that it should have: {few(failed)}" if failed else ""


def kept(parts: Sequence[str]) -> str:
    """Return why the server has no model where `parts` of the networks are the clients' own, and where models are."""
    return (
        f"The server has no complete network: {few(parts)} never left the clients. Each completes its own, and a "
        "device whose node configuration names a folder 'models' keeps it there"
    )


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first two columns are text and whose others are figures."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def cell(i: int, text: str) -> str:
        return text.ljust(widths[i]) if i < 2 or i == len(head) - 1 and not head[i] else text.rjust(widths[i])

    lines = []
    for row in (head, ["-" * width for width in widths], *rows):
        lines.append("  ".join(cell(i, text) for i, text in enumerate(row)).rstrip())
    return "\n" + "\n".join(lines)
