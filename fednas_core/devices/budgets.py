"""Device budgets as a user writes them: ``phone=2M,tablet=30%,camera=20ms+8MB,workstation=max``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from fednas_core.base.errors import ConfigError
from fednas_core.base.values import Arch, Cost
from fednas_core.devices.footprint import Room
from fednas_core.spaces.space import Space

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_MACS = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG%]?)")
_OTHER = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kMG]?)(params|B)|(ms))")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
ALLOWED = (
    "max, a number above 0 with k, M, G or %, e.g. 2.5M or 30% (MACs), 1.5Mparams, 8MB or 20ms, "
    "or several of them joined by +"
)


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that one network may cost on a kind of device: infinity where there is no limit.

    `macs`, `params` and `bytes` (of the weights) are those of a `Cost`; `latency_ms` the time of one image there.
    """

    device: str
    macs: float = math.inf
    params: float = math.inf
    bytes: float = math.inf
    latency_ms: float = math.inf

    def allows(self, cost: Cost, latency_ms: float = 0.0) -> bool:
        """Whether a network of this cost, and of this latency where one is limited, keeps the budget."""
        return (
            cost.macs <= self.macs
            and cost.params <= self.params
            and cost.bytes <= self.bytes
            and latency_ms <= self.latency_ms
        )

    @property
    def timed(self) -> bool:
        """Whether latency is limited, so that somebody must measure."""
        return self.latency_ms < math.inf

    def __str__(self) -> str:
        limits = (
            (self.macs, 1e6, "M MACs"),
            (self.params, 1e6, "M parameters"),
            (self.bytes, 1e6, "MB"),
            (self.latency_ms, 1, "ms"),
        )
        return (
            " + ".join(f"{value / unit:.4g} {name}" for value, unit, name in limits if value < math.inf) or "no limit"
        )


@dataclass(frozen=True, slots=True)
class Allowance:
    """A budget on one device (implements `fednas_core.exchange.orders.Limit`).

    `predict_ms` is the latency to count on there, on the safe side: `LatencyModel.upper_ms` of that device; `room` its
    memory, where that cannot hold every network of the space. Raises
    `ConfigError` if the budget limits latency and nothing predicts it.
    """

    budget: Budget
    space: Space
    predict_ms: Callable[[Arch], float] | None = None
    room: Room | None = None

    def __post_init__(self) -> None:
        """Refuse a limit that nobody could check."""
        if self.budget.timed and self.predict_ms is None:
            raise ConfigError(f"budget '{self.budget}': its latency cannot be checked without measurements of a device")

    def allows(self, arch: Arch) -> bool:
        """See `Limit.allows`."""
        latency_ms = self.predict_ms(arch) if self.predict_ms and self.budget.timed else 0.0
        held = self.room is None or self.room.holds(self.space, arch)
        return held and self.budget.allows(self.space.cost(arch), latency_ms)

    @property
    def kind(self) -> tuple[Budget, Callable[[Arch], float] | None, Room | None]:
        """What tells devices apart that allow different networks: equal for all others of one space."""
        return replace(self.budget, device=""), self.predict_ms, self.room


def parse_macs(text: str, largest: int) -> int:
    """Return MACs from ``500M``, ``1.4G``, ``30%`` (of `largest`) or ``max``; raise `ConfigError` for anything else."""
    if text == "max":
        return largest
    found = _MACS.fullmatch(text)
    if not found or float(found[1]) == 0:
        raise ConfigError(f"budget '{text}': allowed are max, or a number above 0 with k, M, G or %, e.g. 2.5M or 30%")
    number, unit = float(found[1]), found[2]
    return round(largest * number / 100) if unit == "%" else round(number * _UNITS[unit])


def parse_budget(text: str, largest: int, device: str = "") -> Budget:
    """Return the budget that `text` describes, e.g. ``20ms+8MB``; `largest` are the largest network's MACs.

    Raises `ConfigError`.
    """
    limits: dict[str, float] = {}
    for part in (part.strip() for part in text.split("+")):
        key, value = _limit(part, largest)
        if not value:
            raise ConfigError(f"budget '{part}': allowed are {ALLOWED}")
        limits[key] = min(value, limits.get(key, math.inf))
    return Budget(device, **limits)


def parse_budgets(text: str, largest: int) -> tuple[Budget, ...]:
    """Return the budgets of a list such as ``phone=2M,tablet=30%``, in rising order of MACs (those without last).

    `largest` are the MACs of the space's largest network. Raises `ConfigError` naming the entry that is wrong.
    """
    budgets = [parse_budget(value, largest, name) for name, value in budget_texts(text).items()]
    return tuple(sorted(budgets, key=lambda budget: budget.macs))


def budget_texts(text: str) -> dict[str, str]:
    """Return the budget's text for each device of a list such as ``phone=2M,tablet=30%``; raise `ConfigError`."""
    budgets: dict[str, str] = {}
    for entry in text.split(","):
        name, equals, value = (part.strip() for part in entry.partition("="))
        if not equals or not _NAME.fullmatch(name):
            raise ConfigError(
                f"setting 'budgets': entry {entry.strip()!r} is not name=budget (names of letters, digits, - and _); "
                "an example: phone=2M,tablet=30%,camera=20ms,server=max"
            )
        if name in budgets:
            raise ConfigError(f"setting 'budgets': device '{name}' is named twice")
        budgets[name] = value
    return budgets


def budget_of(text: str, named: str, space: Space) -> Budget:
    """Return the budget that `text` means: the name of one in the list `named` (setting 'budgets'), or a budget itself.

    '' is no limit. Raises `ConfigError`.
    """
    found = budget_texts(named).get(text, text)
    return parse_budget(found, space.cost(space.supernet).macs) if found else Budget("")


def _limit(text: str, largest: int) -> tuple[str, float]:
    other = _OTHER.fullmatch(text)
    if other is None:
        try:
            return "macs", float(parse_macs(text, largest))
        except ConfigError:
            raise ConfigError(f"budget '{text}': allowed are {ALLOWED}") from None
    number, unit, kind, ms = float(other[1]), other[2], other[3], other[4]
    if ms:
        return "latency_ms", number
    return ("params" if kind == "params" else "bytes"), round(number * _UNITS[unit])
