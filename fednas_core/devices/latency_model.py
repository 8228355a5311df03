"""A latency model of one device: from the latencies of its probes to that of any architecture of the space.

The time of a network is a sum over its layers, each of which costs so much by itself, by multiply-accumulate, by
activation and by parameter; how much depends on the size of the feature maps. Depthwise convolutions have prices of
their own, by layer and by multiply-accumulate, of which each takes them far longer; squeeze-excite layers have one by
layer. In a space of several resolutions a layer's size says nothing of its place: there all sizes have one price. These
prices are none below zero, so a larger network is never predicted to be faster, and they are fitted in relative error
(`LatencyModel.fit`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fednas_core.base.errors import ConfigError
from fednas_core.base.values import Arch
from fednas_core.devices.info import Probe
from fednas_core.spaces.layers import Charge
from fednas_core.spaces.space import Elastic, Space

Feature = tuple[str, int]
"""What is counted, and the size of the feature maps where it is (0: anywhere)."""
Floats = np.ndarray[Any, np.dtype[np.float64]]

ANYWHERE = 0
NETWORK: Feature = ("network", ANYWHERE)
MACS: tuple[Feature, ...] = (("macs", ANYWHERE), ("depthwise macs", ANYWHERE))
LEAST_PROBES, FINE_PROBES = 3, 16
"""Probes that a fit needs, and from which on layers may be told apart by the size of their feature maps."""
FOLDS = 8
MARGIN_PERCENTILE = 90
LEAST_MARGIN = 0.05
"""What two measurements of one network on one device differ by, however well its latency is predicted."""
UNKNOWN_MARGIN = 1.0
"""Margin where too few probes allow no held-out error: up to twice the prediction."""
_REWEIGHTS = 5
_SMALL = 0.01
"""Relative error below which probes weigh alike: what repeated measurements differ by at best."""


@dataclass(frozen=True)
class LatencyModel:
    """Milliseconds of a forward pass, batch of one, on one device, of any architecture of `space`.

    `prices` are milliseconds for one unit of each feature. `held_out` are the predictions of the probes, each by a
    model that was fitted without it; `error` is the median of their relative errors, `margin` what must be added to a
    prediction, as a share of it, to be on the safe side. Without enough probes `held_out` is empty and `error` None.
    """

    space: Elastic
    prices: dict[Feature, float]
    held_out: tuple[float, ...]
    error: float | None
    margin: float
    _known: dict[tuple[Charge, ...], float] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def fit(cls, space: Elastic, probes: Sequence[Probe]) -> LatencyModel:
        """Return the model of a device's probes.

        Prices are fitted to 10th percentiles, which other work on the device disturbs least, and raised by the usual
        ratio of median to 10th percentile. `error` and `margin` come from cross-validation over the probes; `margin` is
        the 90th percentile of the held-out errors, at least 0.05. With fewer than three probes the model is one price a
        MAC, the highest seen, and its margin is 1. Raises `ConfigError` if there are none.
        """
        if not probes:
            raise ConfigError("a latency model needs probes, and the device measured none")
        if len(probes) < LEAST_PROBES:
            worst = max(probe.median_ms / _macs(space, probe.arch) for probe in probes)
            return cls(space, dict.fromkeys(MACS, worst), (), None, UNKNOWN_MARGIN)
        fine = len(probes) >= FINE_PROBES and _sizes(space, space.smallest) == _sizes(space, space.largest)
        rows = [_features(space, probe.arch, fine) for probe in probes]
        columns = sorted({column for row in rows for column in row})
        table = np.array([[row[column] for column in columns] for row in rows], dtype=np.float64)
        undisturbed = np.array([probe.p10_ms for probe in probes])
        times = np.array([probe.median_ms for probe in probes])
        usual = float(np.median(times / undisturbed))
        held_out = usual * _held_out(table, undisturbed)
        errors = np.abs(held_out / times - 1)
        prices = (usual * _prices(table, undisturbed)).tolist()
        return cls(
            space,
            dict(zip(columns, prices, strict=True)),
            tuple(held_out.tolist()),
            float(np.median(errors)),
            max(LEAST_MARGIN, float(np.percentile(errors, MARGIN_PERCENTILE))),
        )

    def predict_ms(self, arch: Arch) -> float:
        """Return the expected latency in milliseconds; it never falls when a gene rises."""
        total = self.prices.get(NETWORK, 0.0)
        for layer in self.space.layers(arch):
            charges = layer.charges
            if charges not in self._known:
                self._known[charges] = self._price(charges)
            total += self._known[charges]
        return total

    def upper_ms(self, arch: Arch) -> float:
        """Return the latency to decide by: the prediction and its margin."""
        return self.predict_ms(arch) * (1 + self.margin)

    def _price(self, charges: Sequence[Charge]) -> float:
        """Return a layer's milliseconds; only one of the two sizes of a feature has a price."""
        return sum(n * self.prices.get((what, at), 0.0) for what, size, n in charges for at in (size, ANYWHERE))


def _sizes(space: Space, arch: Arch) -> set[int]:
    """Return the sizes of a network's feature maps."""
    return {size for layer in space.layers(arch) for _, size, _ in layer.charges}


def _macs(space: Space, arch: Arch) -> int:
    """Return the multiply-accumulates of a network's convolutions."""
    found = _features(space, arch, fine=False)
    return sum(found[feature] for feature in MACS)


def _features(space: Space, arch: Arch, fine: bool) -> Counter[Feature]:
    """Return how much of each feature a network has; `fine` tells the sizes of feature maps apart."""
    found: Counter[Feature] = Counter({NETWORK: 1})
    for layer in space.layers(arch):
        for what, size, amount in layer.charges:
            found[what, size if fine else ANYWHERE] += amount
    return found


def _prices(table: Floats, times: Floats) -> Floats:
    """Return the non-negative price of each column of `table` (probes, columns) that explains `times` (probes,).

    Least squares of the relative error, repeated with weights inverse to it, so that a few probes that something
    disturbed do not count: an approximation of least absolute relative error.
    """
    from sklearn.linear_model import LinearRegression

    relative = table / times[:, None]
    scale = relative.max(0)
    weights = np.ones(len(times))
    for _ in range(_REWEIGHTS):
        model = LinearRegression(positive=True, fit_intercept=False)
        model.fit(relative / scale, np.ones(len(times)), sample_weight=weights)
        weights = 1 / np.maximum(np.abs(relative / scale @ model.coef_ - 1), _SMALL)
    prices: Floats = model.coef_ / scale
    return prices


def _held_out(table: Floats, times: Floats) -> Floats:
    """Return for each probe the prediction of a model fitted to the others, a fold of them at a time."""
    fold = np.arange(len(times)) % FOLDS
    predicted = np.empty_like(times)
    for i in range(min(FOLDS, len(times))):
        seen = fold != i
        predicted[~seen] = table[~seen] @ _prices(table[seen], times[seen])
    return predicted
