"""Device budgets as a user writes them: ``phone=2M,tablet=30%,workstation=max``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fednas_core.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG%]?)")


@dataclass(frozen=True, slots=True)
class Budget:
    """A kind of device and the most MACs that one image may cost there."""

    device: str
    macs: int


def parse_macs(text: str, largest: int) -> int:
    """Return MACs from ``500M``, ``1.4G``, ``30%`` (of `largest`) or ``max``; raise `ConfigError` for anything else."""
    if text == "max":
        return largest
    found = _NUMBER.fullmatch(text)
    if not found or float(found[1]) == 0:
        raise ConfigError(f"budget '{text}': allowed are max, or a number above 0 with k, M, G or %, e.g. 2.5M or 30%")
    number, unit = float(found[1]), found[2]
    return round(largest * number / 100) if unit == "%" else round(number * _UNITS[unit])


def parse_budgets(text: str, largest: int) -> tuple[Budget, ...]:
    """Return the budgets of a list such as ``phone=2M,tablet=30%``, in rising order of MACs.

    `largest` are the MACs of the space's largest network. Raises `ConfigError` naming the entry that is wrong.
    """
    budgets: dict[str, int] = {}
    for entry in text.split(","):
        name, equals, value = (part.strip() for part in entry.partition("="))
        if not equals or not _NAME.fullmatch(name):
            raise ConfigError(
                f"setting 'budgets': entry {entry.strip()!r} is not name=budget (names of letters, digits, - and _); "
                "an example: phone=2M,tablet=30%,server=max"
            )
        if name in budgets:
            raise ConfigError(f"setting 'budgets': device '{name}' is named twice")
        budgets[name] = parse_macs(value, largest)
    return tuple(Budget(name, macs) for name, macs in sorted(budgets.items(), key=lambda item: item[1]))
