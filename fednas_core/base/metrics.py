"""What networks are compared by: a metric has a name, a direction and a way to be written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from fednas_core.base.units import MISSING, percent, share

Metrics = Mapping[str, float | None]
"""Values by the names of their metrics; None: not known."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: the key of its values in what a run records, and how people are told of it.

    A metric of unit ``%`` is a share from 0 to 1, written in per cent; one without a unit is written as it is.
    `higher` says that a higher value is the better one.
    """

    name: str
    title: str
    plural: str
    unit: Literal["%", ""] = "%"
    higher: bool = True

    def of(self, values: Metrics) -> float | None:
        """Return this metric's value among those of a network, None if it is not known."""
        return values.get(self.name)

    def text(self, value: float | None) -> str:
        """Return a value with one decimal and its unit, for a page, e.g. ``97.3 %``."""
        if self.unit:
            return percent(value)
        return MISSING if value is None else f"{value:.3g}"

    def brief(self, value: float | None) -> str:
        """Return a value for a line of the terminal, e.g. ``97.3%``."""
        if self.unit:
            return share(value)
        return MISSING if value is None else f"{value:.3g}"

    def best(self, values: Iterable[float]) -> float | None:
        """Return the best of some values, None of none."""
        return max(values, key=self.rank, default=None)

    def rank(self, value: float) -> float:
        """Return what sorts values from worst to best."""
        return value if self.higher else -value


ACCURACY = Metric("accuracy", "Accuracy", "Accuracies")
"""The share of examples whose label is predicted."""
