"""Task ``teach``: the device keeps a network, from which students learn there later in the run (DDC).

All clients of a device share it: a thousand simulated ones are one machine and one file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from fednas_core.base.errors import TaskError
from fednas_core.base.values import Arch, State
from fednas_core.exchange.orders import Order
from fednas_core.exchange.results import Kept
from fednas_core.exchange.schema import Schema, network_of
from fednas_core.spaces.space import Space
from fednas_core.subnets.networks import network
from fednas_core.tasks.memory import to_use
from fednas_core.tasks.site import Site
from fednas_core.tasks.store import Store
from fednas_core.tasks.task import NoParams, Task, Work

DEVICE, PURPOSE = "device", "teacher"
"""Under which names the teacher lies in the device's private state."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """The teacher that a device keeps: its architecture, and the network in evaluation mode."""

    arch: Arch
    module: nn.Module


def teach(order: Order, params: NoParams, site: Site, until: float) -> Work[Kept]:
    """Keep the order's network, batch statistics included, as the teacher of the rounds after the order's.

    Nothing is computed. Raises `RunError` if the device has no room for it.
    """
    store, state = site.store, State(order.weights, {"arch": order.arch.to_json()})
    if not _same(store.load(order.run, DEVICE, PURPOSE, order.round + 1), state):
        store.save(order.run, DEVICE, PURPOSE, order.round, state)
    return Work(Kept(), macs=0)


def teacher_of(order: Order, site: Site) -> Lesson:
    """Return the teacher that was given to the device before the order's round.

    Whoever asks again in the same round gets the same module. Raises `TaskError` if the device has none.
    """
    return _read(site.store, order.run, order.round, site.space, site.device)


@lru_cache(maxsize=1)
def _read(store: Store, run: str, round: int, space: Space, device: torch.device) -> Lesson:
    state = store.load(run, DEVICE, PURPOSE, round)
    if state is None:
        raise TaskError(
            f"this device has no teacher of run {run}: it joined later, or lost what it kept; the server sends it "
            "before the next round"
        )
    arch = space.arch(state.data["arch"])
    return Lesson(arch, network(space, arch, state.tensors, device).eval())


def _same(found: State | None, wanted: State) -> bool:
    if found is None or found.data != wanted.data or found.tensors.keys() != wanted.tensors.keys():
        return False
    return all(torch.equal(tensor, wanted.tensors[name]) for name, tensor in found.tensors.items())


TASK = Task(Schema(NoParams, Kept, network_of), teach, to_use)
