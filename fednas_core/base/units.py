"""How numbers are written for people: three significant digits and a unit (powers of ten, not of two)."""

from __future__ import annotations

import math
from collections.abc import Iterable

MISSING = "–"


def count(value: float | None, unit: str = "") -> str:
    """Return e.g. ``452 k`` or, with a unit, ``1.25 MB``; a dash for None and for what is not finite."""
    if value is None or not math.isfinite(value):
        return MISSING
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor * 0.9995:
            return f"{_three(value / factor)} {prefix}{unit}"
    return f"{_three(value)} {unit}".rstrip()


def macs(value: float | None) -> str:
    """Return a number of multiply-accumulates, e.g. ``452 k MACs``."""
    text = count(value)
    return text if text == MISSING else f"{text} MACs"


def size(value: float | None) -> str:
    """Return a number of bytes, e.g. ``31.2 kB``."""
    return count(value, "B")


def percent(share: float | None) -> str:
    """Return a share from 0 to 1 in per cent with one decimal, e.g. ``97.3 %``."""
    return MISSING if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def share(value: float | None) -> str:
    """Return an accuracy from 0 to 1 in per cent for the terminal, e.g. ``97.3%``; a dash for one that nobody knows."""
    return MISSING if value is None else f"{value:.1%}"


def cross_entropy(value: float | None) -> str:
    """Return a loss with three decimals; a dash for one that nobody knows."""
    return MISSING if value is None else f"{value:.3f}"


def milliseconds(value: float | None) -> str:
    """Return a time given in milliseconds, e.g. ``0.62 ms``."""
    return MISSING if value is None or not math.isfinite(value) else f"{_three(value)} ms"


def duration(seconds: float | None) -> str:
    """Return a time given in seconds, e.g. ``4.2 s``, ``2 min 05 s`` or ``3 h 20 min``."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 59.5:
        return f"{_three(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def few(names: Iterable[str], most: int = 12) -> str:
    """Return up to `most` names in one line, and how many more there are."""
    found = list(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def _three(value: float) -> str:
    """Return `value` with three significant digits, without exponent and, if whole, without decimals."""
    value = float(f"{value:.3g}")
    if value.is_integer():
        return str(int(value))
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"
