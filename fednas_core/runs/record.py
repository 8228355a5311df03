"""What a run records, as values: the event of each round, the networks that were judged, and the result."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fednas_core.base.metrics import Metric, Metrics
from fednas_core.base.typed import APART, INLINE, measured, object_of
from fednas_core.methods.story import ClientRow, Genes, Story


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How the values of a metric spread over clients: mean, standard deviation (of a population), worst and best.

    `worst_decile` is the mean over the worst tenth of the clients, their number rounded up.
    """

    clients: int
    mean: float
    std: float
    worst: float
    worst_decile: float
    best: float

    @classmethod
    def of(cls, values: Sequence[float], metric: Metric) -> Spread:
        """Return how values of a metric spread, one a client and at least one."""
        ranked = sorted(values, key=metric.rank)
        worst = ranked[: math.ceil(len(ranked) / 10)]
        return cls(
            clients=len(ranked),
            mean=statistics.fmean(values),
            std=statistics.pstdev(values),
            worst=worst[0],
            worst_decile=statistics.fmean(worst),
            best=ranked[-1],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Single:
    """What one client found of a network on `tested` examples of its own."""

    client: str
    tier: str
    metrics: Metrics = field(metadata=measured(""))
    loss: float
    tested: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What clients found of a network: over all of them, by tier, and one by one.

    `held_out` says whether nobody had trained on what it tested on, `tested` on how many examples all did together.
    """

    spread: Spread = field(metadata=INLINE)
    tested: int
    held_out: bool
    tiers: Mapping[str, Spread]
    each: tuple[Single, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """How a network that is followed does, on the server or, where `clients` alone could test it, as their mean.

    `macs` is None of a name under which each client has its own network.
    """

    name: str
    macs: int | None
    metrics: Metrics = field(metadata=measured(""))
    loss: float
    clients: Trial | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A client that was asked and gave no usable answer, and why."""

    client: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Staleness:
    """By how many other replies those of a round were overtaken."""

    mean: float
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEvent:
    """One round: what it came to on the clients that trained, what it took, and who failed.

    Loss and metrics are means over the clients, weighted by examples, None where nobody trained. `evaluation` is None
    in a round without one, `update_norm` what was usual of the updates' norms, None if there was none. `anew` names
    clients that have lost their private state.
    """

    round: int
    loss: float | None
    metrics: Metrics = field(metadata=measured(""))
    bytes_up: int
    bytes_down: int
    client_macs: int
    seconds: float
    clients: tuple[ClientRow, ...]
    failures: tuple[Failed, ...]
    evaluation: tuple[Evaluated, ...] | None
    update_norm: float | None
    staleness: Staleness | None = None
    search: Story | None = field(default=None, metadata=APART)
    anew: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the line of ``events.jsonl``."""
        return object_of(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A network that was judged, in ``frontier.json``; on the frontier if no cheaper one is at least as good."""

    arch: Genes
    macs: int
    params: int
    bytes: int
    fitness: float | None
    validation: Metrics = field(metadata=measured("validation_"))
    on_frontier: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """The model that was chosen and exported for a kind of device.

    `budget` is its budget as it is told, `budget_macs` the MACs that it allows, None if it limits others alone.
    """

    device: str
    budget: str
    budget_macs: int | None
    arch: Genes
    validation: Metrics = field(metadata=measured("validation_"))
    test: Metrics = field(metadata=measured("test_"))
    macs: int
    params: int
    bytes: int
    latency_ms: float | None
    export_max_abs_error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnModel:
    """The model that a client was handed, and how it does there.

    `larger` are the metrics of the best larger network that its limit allows, on the validation examples as
    `validation`; None if there is none. `metrics` are found on `tested` examples of its own, None without any.
    """

    arch: Genes
    macs: int
    params: int
    bytes: int
    validation: Metrics = field(metadata=measured("validation_"))
    larger: Metrics = field(metadata=measured("larger_"))
    metrics: Metrics = field(metadata=measured(""))
    tested: int
    held_out: bool
    latency_ms: float | None
    stored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver:
    """What a client has after training: a model, or a `reason` why not, which is a failure if it should have one."""

    client: str
    budget: str
    reason: str
    failed: bool
    model: OwnModel | None = field(default=None, metadata=INLINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Supernet:
    """The largest network of the run's search space."""

    space: str
    norm: str
    macs: int
    params: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run came to: ``result.json``.

    `personal` names the layers that are the clients' own, `search` what the networks of a supernet were searched by
    (None: there was nothing to search). Totals are over the `rounds` but the first `unrecorded` ones.
    """

    run: str
    method: str
    personal: tuple[str, ...]
    search: str | None
    rounds: int
    unrecorded: int
    models: tuple[ModelRow, ...]
    clients: tuple[HandedOver, ...]
    bytes_up: int
    bytes_down: int
    client_macs: int
    failures: int
    supernet: Supernet
    versions: Mapping[str, str]
    seconds: Mapping[str, float]
