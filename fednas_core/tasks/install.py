"""Task ``install``: a device takes over its model, calibrates, tests and times it there, and keeps what fits it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from fednas_core.base.paths import expanded
from fednas_core.base.values import Arch
from fednas_core.devices.budgets import budget_of
from fednas_core.devices.latency import Latency, measure
from fednas_core.devices.probes import blank
from fednas_core.exchange.orders import Order
from fednas_core.exchange.results import Installed
from fednas_core.exchange.schema import Schema, network_of
from fednas_core.export.bundle import ExportInput, Facts, export
from fednas_core.spaces.space import Elastic
from fednas_core.tasks.images import tested
from fednas_core.tasks.memory import to_use
from fednas_core.tasks.personal import Adaptation, ready
from fednas_core.tasks.site import Site
from fednas_core.tasks.task import Task, Work

EXPORT_SAMPLES = 64


EXPORT_BYTES = 50_000_000
"""What the libraries that write and check an exported model take."""


@dataclass(frozen=True, slots=True)
class Handover:
    """How a device takes over its model.

    `adapt` says how it makes it its own; with `forget` its private state of the run is of no use any more. `trained`
    tells people how the network was trained.
    """

    adapt: Adaptation
    forget: bool
    trained: str


def install(order: Order, params: Handover, site: Site, until: float) -> Work[Installed]:
    """Take over the order's network as this device's model (see `Task`).

    A model that is too slow here is neither kept nor said to be.
    """
    module = ready(order, params.adapt, site, until)
    found = tested(module, site.test, site.prepare)
    space, home = site.space, site.home
    latency = _latency(space, order.arch, site.device, home.threads, order.run)
    if params.forget:
        site.store.forget(order.run)
    fits = latency.median_ms <= budget_of(home.budget or order.budget, site.budgets, space).latency_ms
    if fits and home.models:
        _store(order, params, site, module.cpu(), latency)
    result = Installed(
        loss=found.loss,
        accuracy=found.accuracy,
        tested=found.images,
        held_out=site.held_out,
        latency_ms=latency.median_ms,
        fits=fits,
        stored=bool(fits and home.models),
    )
    return Work(result, found.images * space.cost(order.arch).macs)


@lru_cache(maxsize=64)
def _latency(space: Elastic, arch: Arch, device: torch.device, threads: int, run: str) -> Latency:
    """Return the latency of an architecture here, measured once in `run`: simulated clients share a machine."""
    module = blank(space, arch, torch.zeros(space.cost(arch).params, device=device))
    return measure(module, space.signature.inputs, threads=threads)


def _store(order: Order, params: Handover, site: Site, module: nn.Module, latency: Latency) -> None:
    known = site.facts
    item = ExportInput(
        device=order.client,
        space=site.space,
        arch=order.arch,
        module=module,
        mean=known.mean,
        std=known.std,
        classes=known.classes,
        samples=(site.test if len(site.test.y) else site.train).x[:EXPORT_SAMPLES],
        facts=Facts(known.name, f"{params.trained}, run {order.run}", latency=latency),
    )
    export(item, expanded(site.home.models))


def _memory(order: Order, params: Handover, site: Site) -> tuple[int, str]:
    needed, what = to_use(order, params, site)
    return (needed + EXPORT_BYTES, "testing and exporting it") if site.home.models else (needed, what)


TASK = Task(Schema(Handover, Installed, network_of), install, _memory, personal=True)
