"""Task ``teach``: the device keeps a network, from which students learn there later in the run (DDC).

All clients of a device share it: a thousand simulated ones are one machine and one file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import TaskError
from fednas_core.base.values import Arch, State
from fednas_core.exchange.orders import TrainOrder
from fednas_core.spaces.space import Space
from fednas_core.subnets.networks import network
from fednas_core.tasks.home import Home
from fednas_core.tasks.store import Store, store_of
from fednas_core.tasks.subnet import Work

DEVICE, PURPOSE = "device", "teacher"
"""Under which names the teacher lies in the device's private state."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The teacher that a device keeps: its architecture, and the network in evaluation mode."""

    arch: Arch
    module: nn.Module


def teach(order: TrainOrder, config: RunConfig, index: int, home: Home, until: float) -> Work:
    """Keep the order's network, batch statistics included, as the teacher of the rounds after the order's.

    Figure: ``kept``, 1.0. Nothing is computed: loss, accuracy and MACs are 0. Raises `RunError` if the device has no
    room for it.
    """
    store, state = store_of(home), State(order.tensors, {"arch": order.arch.to_json()})
    if not _same(store.load(order.run, DEVICE, PURPOSE, order.round + 1), state):
        store.save(order.run, DEVICE, PURPOSE, order.round, state)
    return Work(tensors={}, loss=0.0, accuracy=0.0, macs=0, figures={"kept": 1.0})


def teacher_of(order: TrainOrder, home: Home, space: Space, device: torch.device) -> Kept:
    """Return the teacher that was given to the device before the order's round, a network of `space` on `device`.

    Whoever asks again in the same round gets the same module. Raises `TaskError` if the device has none.
    """
    return _read(store_of(home), order.run, order.round, space, device)


@lru_cache(maxsize=1)
def _read(store: Store, run: str, round: int, space: Space, device: torch.device) -> Kept:
    state = store.load(run, DEVICE, PURPOSE, round)
    if state is None:
        raise TaskError(
            f"this device has no teacher of run {run}: it joined later, or lost what it kept; the server sends it "
            "before the next round"
        )
    arch = space.arch(state.data["arch"])
    return Kept(arch, network(space, arch, state.tensors, device).eval())


def _same(found: State | None, wanted: State) -> bool:
    if found is None or found.data != wanted.data or found.tensors.keys() != wanted.tensors.keys():
        return False
    return all(torch.equal(tensor, wanted.tensors[name]) for name, tensor in found.tensors.items())
