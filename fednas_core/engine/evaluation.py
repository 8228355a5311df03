"""After training: judge the candidates on validation images, choose one model per device, measure and export it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import InfeasibleError
from fednas_core.base.seeding import stream
from fednas_core.base.values import Arch
from fednas_core.devices.budgets import Allowance, Budget
from fednas_core.devices.latency import measure
from fednas_core.export.bundle import ExportInput, Facts, export
from fednas_core.methods.catalogue import METHODS
from fednas_core.methods.fedavg import fixed_arch
from fednas_core.search.fitness import Fitness
from fednas_core.search.fittest import fitness_of, fittest
from fednas_core.search.measured import Worth, most_accurate
from fednas_core.search.path import PathRow
from fednas_core.search.within import within
from fednas_core.spaces.space import Elastic
from fednas_core.subnets.networks import calibrate, network, shapes_of
from fednas_core.tasks.bench import dataset_of, device_of, precision_of, preprocessing_of, space_of, validation_images
from fednas_core.tasks.images import prepared
from fednas_core.training.evaluate import Evaluation, evaluate

CALIBRATION_IMAGES = 512
SEARCH_BUDGETS = 48
"""MAC budgets at which the fittest network is looked at for a device that is limited otherwise."""
FRONTIER_ROWS = 20
"""Architectures of the path that are judged after training, besides those the budgets ask for."""
EXPORT_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Judged:
    """One candidate: costs, fitness (NaN where it is not defined), accuracy (0 to 1) and loss on validation images."""

    arch: Arch
    macs: int
    params: int
    bytes: int
    fitness: float
    validation_accuracy: float
    validation_loss: float


class Validator(Protocol):
    """Whoever says how accurate a subnet of the supernet is."""

    def validate(self, arch: Arch) -> Evaluation:
        """Evaluate an architecture on images that no client trains on."""
        ...


class Judge:
    """Evaluates networks on the server's images: validation to choose by, test at the end.

    `tensors` are the shared tensors of an architecture's network as it is at that moment: see `Method.network`.
    """

    def __init__(self, config: RunConfig, tensors: Callable[[Arch], Mapping[str, Tensor]]) -> None:
        self._config, self._tensors = config, tensors
        self._space, self._device = space_of(config), device_of(config)
        self._precision = precision_of(config.train.precision, self._device)
        self._prepare = preprocessing_of(config)
        self._images = validation_images(config)
        self.settled: dict[Arch, Mapping[str, Tensor]] = {}

    def network(self, arch: Arch) -> torch.nn.Module:
        """Return the extracted network, its batch statistics calibrated on validation images if it has any.

        What is in `settled` has those already.
        """
        if arch in self.settled:
            return network(self._space, arch, self.settled[arch], self._device).eval()
        module = network(self._space, arch, self._tensors(arch), self._device)
        calibrate(module, (x for x, _ in prepared(self._images, self._prepare, CALIBRATION_IMAGES)))
        return module

    def model(self, arch: Arch) -> Mapping[str, Tensor]:
        """Return what a client needs to use a network: its tensors and any batch statistics, as calibrated here.

        Where layers are personal the client finds those statistics itself.
        """
        if self._space.norm != "batch" or self._space.personal:
            return self._tensors(arch)
        state = self.network(arch).cpu().state_dict()
        return {name: state[name] for name in shapes_of(self._space, arch, statistics=True)}

    def validate(self, arch: Arch, most: int | None = None) -> Evaluation:
        """Evaluate an architecture on the validation images, or on `most` of them evenly spread."""
        return evaluate(self.network(arch), prepared(self._images, self._prepare, most), self._precision)

    def macs(self, arch: Arch) -> int:
        """Return the MACs of an architecture."""
        return self._space.cost(arch).macs

    def test(self, arch: Arch) -> Evaluation:
        """Evaluate an architecture on the test set, in float32: what a finished model is reported with."""
        return evaluate(self.network(arch), prepared(dataset_of(self._config).test, self._prepare))


def candidates(config: RunConfig, allowances: Sequence[Allowance], path: Sequence[PathRow]) -> tuple[Arch, ...]:
    """Return the architectures worth judging: an even part of the path, and for each device what fits it best.

    Raises `InfeasibleError` naming the device that nothing fits.
    """
    space = space_of(config)
    step = max(1, len(path) // FRONTIER_ROWS)
    chosen = {row.arch: None for row in [*path[::-step], path[0]]}
    for allowance in allowances:
        fitting = [row.arch for row in path if allowance.allows(row.arch)]
        chosen |= dict.fromkeys(fitting[-3:])
        chosen |= {_fittest(config, space, allowance): None}
    return tuple(sorted(chosen, key=lambda arch: space.cost(arch).macs))


def _fittest(config: RunConfig, space: Elastic, allowance: Allowance) -> Arch:
    """Return the architecture of highest fitness that a device allows.

    A limit on MACs is met exactly; under others it is the fittest that fits of the best at each of many MAC budgets.
    """
    budget, fitness = allowance.budget, Fitness(lam=config.sample.fitness_lambda)
    least, most = (space.cost(arch).macs for arch in (space.smallest, space.largest))
    try:
        if min(budget.params, budget.bytes, budget.latency_ms) == math.inf:
            return fittest(space, [int(min(budget.macs, most))], fitness)[0]
    except InfeasibleError as error:
        raise InfeasibleError(f"device '{budget.device}': {error}") from error
    found = fittest(space, [int(macs) for macs in np.geomspace(least, most, SEARCH_BUDGETS)], fitness)
    fitting = within(space, found[-1], allowance)
    if fitting is None:
        raise _nothing_fits(space, allowance)
    return next((arch for arch in reversed(found) if allowance.allows(arch)), fitting)


def measured(
    config: RunConfig, judge: Judge, allowances: Sequence[Allowance], step: Callable[[], None] = lambda: None
) -> tuple[Arch, ...]:
    """Return the architectures worth judging that evolution on measured accuracy finds: the best few of each device.

    Devices that allow the same networks share a search, and searches what they measured. Of equally accurate networks
    that of least loss is the better one. `step` is called after each measurement. Raises `InfeasibleError` naming the
    device that nothing fits.
    """
    space, given = space_of(config), config.search
    known: dict[Arch, Worth] = {}

    def worth(arch: Arch) -> Worth:
        if arch not in known:
            found = judge.validate(arch, given.images or None)
            known[arch] = (found.accuracy, -found.loss)
            step()
        return known[arch]

    chosen: dict[Arch, None] = {}
    for allowance in {allowance.kind: allowance for allowance in allowances}.values():
        rng = stream(config.seed, "search", str(allowance.budget))
        best = most_accurate(space, allowance, worth, given.population, given.generations, rng)
        if not best:
            raise _nothing_fits(space, allowance)
        chosen |= dict.fromkeys(best)
    return tuple(sorted(chosen, key=lambda arch: space.cost(arch).macs))


def _nothing_fits(space: Elastic, allowance: Allowance) -> InfeasibleError:
    least = space.cost(space.smallest)
    return InfeasibleError(
        f"device '{allowance.budget.device}': nothing in space '{space.name}' keeps its budget of {allowance.budget}: "
        f"the smallest network takes {least.macs:,} MACs, {least.bytes:,} bytes"
    )


def judge_all(
    config: RunConfig, judge: Validator, archs: Sequence[Arch], step: Callable[[], None] = lambda: None
) -> tuple[Judged, ...]:
    """Let every architecture be judged; `step` is called after each."""
    space = space_of(config)
    fitness = fitness_of(space, archs, Fitness(lam=config.sample.fitness_lambda))
    judged = []
    for arch, value in zip(archs, fitness, strict=True):
        cost = space.cost(arch)
        found = judge.validate(arch)
        judged.append(Judged(arch, cost.macs, cost.params, cost.bytes, value, found.accuracy, found.loss))
        step()
    return tuple(judged)


def preference(row: Judged) -> tuple[float, int, int, float]:
    """Return what candidates are ordered by, the best first: accuracy, then MACs, parameters and loss.

    Of equally accurate networks the cheaper one is the better. Means over clients count as equal to nine digits.
    """
    return -round(row.validation_accuracy, 9), row.macs, row.params, row.validation_loss


def best_within(judged: Sequence[Judged], allows: Callable[[Arch], bool]) -> Judged | None:
    """Return the best candidate that a device allows (see `preference`); None if nothing fits."""
    return min((row for row in judged if allows(row.arch)), key=preference, default=None)


def frontier(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """Return every candidate as a JSON row that says whether a cheaper one is at least as accurate."""
    rows, best = [], -1.0
    for row in sorted(judged, key=lambda row: (row.macs, preference(row))):
        on_frontier = row.validation_accuracy > best
        best = max(best, row.validation_accuracy)
        rows.append(
            {
                "arch": row.arch.to_json(),
                "macs": row.macs,
                "params": row.params,
                "bytes": row.bytes,
                "fitness": None if math.isnan(row.fitness) else row.fitness,
                "validation_accuracy": row.validation_accuracy,
                "on_frontier": on_frontier,
            }
        )
    return rows


def deliver(config: RunConfig, judge: Judge, budget: Budget, chosen: Judged, folder: Path) -> dict[str, Any]:
    """Test, time and export the model of one device; return its row of ``result.json``.

    Without test images its accuracy on them is unknown: None.
    """
    data, space = dataset_of(config), space_of(config)
    module = judge.network(chosen.arch).cpu()
    test_accuracy = judge.test(chosen.arch).accuracy if len(data.test.y) else None
    latency = measure(module, tuple(data.test.x.shape[1:]))
    trained = f"{config.method}, {config.rounds} rounds, {config.data.clients} clients, seed {config.seed}"
    exported = export(
        ExportInput(
            device=budget.device,
            space=space,
            arch=chosen.arch,
            module=module,
            mean=data.mean,
            std=data.std,
            classes=data.classes,
            samples=validation_images(config).x[:EXPORT_SAMPLES],
            facts=Facts(data.name, trained, chosen.validation_accuracy, test_accuracy, latency),
        ),
        folder,
    )
    return {
        "device": budget.device,
        "budget": str(budget),
        "budget_macs": None if budget.macs == math.inf else int(budget.macs),
        "arch": chosen.arch.to_json(),
        "validation_accuracy": chosen.validation_accuracy,
        "test_accuracy": test_accuracy,
        "macs": chosen.macs,
        "params": chosen.params,
        "bytes": chosen.bytes,
        "latency_ms": latency.median_ms,
        "export_max_abs_error": exported.max_abs_error,
    }


def trained_archs(config: RunConfig, space: Elastic) -> tuple[Arch, ...] | None:
    """Return the only architectures that the method trains; None if any subnet of the supernet may be used."""
    return (fixed_arch(config, space),) if METHODS[config.method].fixed else None
