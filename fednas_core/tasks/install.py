"""Task ``install``: a device takes over its model, calibrates, tests and times it there, and keeps what fits it."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from fednas_core.base.config import COMPETING, RunConfig
from fednas_core.base.paths import expanded
from fednas_core.base.values import Arch
from fednas_core.devices.budgets import budget_of
from fednas_core.devices.latency import Latency, measure
from fednas_core.devices.probes import blank
from fednas_core.exchange.orders import TrainOrder
from fednas_core.export.bundle import ExportInput, Facts, export
from fednas_core.spaces.space import Elastic
from fednas_core.tasks.bench import Ground, device_of, facts_of, ground_of
from fednas_core.tasks.home import Home
from fednas_core.tasks.images import tested
from fednas_core.tasks.personal import ready
from fednas_core.tasks.store import store_of
from fednas_core.tasks.subnet import Work

EXPORT_SAMPLES = 64


def install(order: TrainOrder, config: RunConfig, index: int, home: Home, until: float) -> Work:
    """Take over the order's network as this device's model.

    Figures: ``latency_ms`` (true median of one image here), ``fits`` (1.0 if that keeps the budget), ``held_out`` (1.0
    if it was tested on images it never trained on), ``tested`` (number of those images, 0 if it has none to spare),
    ``stored`` (1.0 if it lies in the folder that the node's configuration names). A model that is too slow here is
    neither kept nor said to be.
    """
    ground, device = ground_of(config, index, home, order.trains), device_of(config)
    module = ready(order, config, ground, home, until)
    found = tested(module, ground.test, ground.prepare)
    space = ground.space
    latency = _latency(space, order.arch, device, home.threads, order.run)
    if (config.wire.up == "topk" or config.method in COMPETING) and not space.personal:
        store_of(home).forget(order.run)  # what was left out of updates, or taught, is of no use once training is over
    fits = latency.median_ms <= budget_of(home.budget or order.budget, config.budgets, space).latency_ms
    if fits and home.models:
        _store(order, config, home, ground, module.cpu(), latency)
    return Work(
        tensors={},
        loss=found.loss,
        accuracy=found.accuracy,
        macs=found.images * space.cost(order.arch).macs,
        figures={
            "latency_ms": latency.median_ms,
            "fits": float(fits),
            "held_out": float(ground.held_out),
            "tested": float(found.images),
            "stored": float(bool(fits and home.models)),
        },
    )


@lru_cache(maxsize=64)
def _latency(space: Elastic, arch: Arch, device: torch.device, threads: int, run: str) -> Latency:
    """Return the latency of an architecture here, measured once in `run`: simulated clients share a machine."""
    module = blank(space, arch, torch.zeros(space.cost(arch).params, device=device))
    return measure(module, space.signature.inputs, threads=threads)


def _store(
    order: TrainOrder, config: RunConfig, home: Home, ground: Ground, module: nn.Module, latency: Latency
) -> None:
    known = home.facts or facts_of(config)
    trained = f"{config.method}, {config.rounds} rounds, run {order.run}"
    item = ExportInput(
        device=order.client,
        space=ground.space,
        arch=order.arch,
        module=module,
        mean=known.mean,
        std=known.std,
        classes=known.classes,
        samples=(ground.test if len(ground.test.y) else ground.train).x[:EXPORT_SAMPLES],
        facts=Facts(known.name, trained, latency=latency),
    )
    export(item, expanded(home.models))
