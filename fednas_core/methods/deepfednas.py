"""DeepFedNAS (Khan and Daneshtalab, arXiv 2601.15127): the Pareto path of a closed-form fitness as curriculum.

Phase 1 finds, for each of 60 MAC budgets, the architecture of highest fitness. Phase 2 is SuperFedNAS with the path's
first row as the smallest network, its last as the largest, and the others drawn uniformly from the path. Phase 3, after
training, searches by the same fitness: no accuracy predictor is needed.

Two additions are ours and off by default: a path stratified by depth, and a share of range-matched draws; the
published path holds networks of full depth only, so shallower ones are never trained. Three controls replace the path
by random draws: uniform, in its range of MACs, or of the same MACs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fednas_core.base.config import SampleConfig
from fednas_core.base.values import Arch
from fednas_core.devices.info import Limit
from fednas_core.methods.superfednas import Draw, TrackingSandwich
from fednas_core.search.path import PathRow, mac_matched, range_matched
from fednas_core.search.within import within
from fednas_core.spaces.space import Elastic

MATCH_TOLERANCE = 0.05
"""Relative distance in MACs within which a random architecture counts as matched."""


def curriculum(space: Elastic, path: Sequence[PathRow], config: SampleConfig) -> TrackingSandwich:
    """Return the sampler ``TS_optimal_path``, or the control that `config.between` names."""
    low, high = path[0].cost.macs, path[-1].cost.macs

    def on_path(rng: np.random.Generator) -> Arch:
        return path[int(rng.integers(len(path)))].arch

    def in_range(rng: np.random.Generator) -> Arch:
        return range_matched(space, low, high, rng)

    def matched(rng: np.random.Generator, row: int | None = None) -> Arch:
        target = path[int(rng.integers(len(path))) if row is None else row].cost.macs
        return mac_matched(space, target, MATCH_TOLERANCE, rng)

    def mixed(rng: np.random.Generator) -> Arch:
        return in_range(rng) if rng.random() < config.range_share else on_path(rng)

    def narrow(arch: Arch, limit: Limit) -> Arch | None:
        """The dearest network of the path that fits and is no dearer; below the path, a narrower first one."""
        most = space.cost(arch).macs
        fitting = (row.arch for row in reversed(path) if row.cost.macs <= most and limit.allows(row.arch))
        return next(fitting, None) or within(space, path[0].arch, limit)

    first: Draw = lambda rng: path[0].arch  # noqa: E731
    random_first: Draw = lambda rng: matched(rng, 0)  # noqa: E731
    smallest, between = {
        "auto": (first, mixed if config.range_share else on_path),
        "path": (first, mixed if config.range_share else on_path),
        "uniform": (lambda rng: space.smallest, space.sample),
        "range-matched": (random_first, in_range),
        "mac-matched": (random_first, matched),
    }[config.between]
    return TrackingSandwich(path[-1].arch, smallest, between, narrow)
