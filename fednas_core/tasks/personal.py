"""FedPer on the client (arXiv 1912.00818, algorithm "client"): layers that are trained here and never leave.

A client keeps full-size tensors of its private layers, made once from a seed of its own; every network it is given
uses the region of them that its architecture owns. So personal layers go with any space, method and architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from fednas_core.base.config import RunConfig
from fednas_core.base.seeding import derive
from fednas_core.base.values import State
from fednas_core.exchange.orders import TrainOrder
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.space import Space
from fednas_core.subnets.networks import calibrate, network
from fednas_core.subnets.packing import views
from fednas_core.tasks.bench import Ground, device_of, precision_of
from fednas_core.tasks.home import Home
from fednas_core.tasks.images import epochs_of, prepared
from fednas_core.tasks.store import repeats, store_of
from fednas_core.training.loop import train
from fednas_core.training.settings import train_settings

PURPOSE = "personal"
"""The name of the private layers in the client's private state."""
CALIBRATION_IMAGES = 512


def completed(
    order: TrainOrder, config: RunConfig, space: Space, home: Home
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of the order's whole network, and the client's full-size private ones, which they look into.

    W_P is initialised once, at random; then it is what the client's last round left.
    """
    own = _kept(order, config, space, home) or _first(order, config, space)
    return {**order.tensors, **views(own, space.private(order.arch))}, own


def keep(own: Mapping[str, Tensor], trained: Mapping[str, Tensor], order: TrainOrder, space: Space, home: Home) -> None:
    """Keep what the round made of the private layers; raise `RunError` if the device cannot."""
    mine = views(own, space.private(order.arch))
    if mine:
        torch._foreach_copy_(list(mine.values()), [trained[name].detach().cpu() for name in mine])
    if own:  # of a network without private layers too: who has trained has a state
        store_of(home).save(order.run, order.client, PURPOSE, order.round, State(own))


def ready(order: TrainOrder, config: RunConfig, ground: Ground, home: Home, until: float) -> nn.Module:
    """Return the order's network as this client uses it, on the run's device.

    A newcomer, who has private layers but never trained, fits them to its images for ``personal.epochs``, the shared
    layers as they are. `until` is the deadline of that on the clock of `time.monotonic`.
    """
    space, device = ground.space, device_of(config)
    tensors, own = completed(order, config, space, home)
    module = network(space, order.arch, tensors, device)
    if own and not _kept(order, config, space, home):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in order.tensors)
        settings = replace(train_settings(config.train), epochs=config.personal.epochs)
        few = replace(order, settings=settings, seed=derive(config.seed, order.client, PURPOSE, "fit"))
        train(module, epochs_of(few, ground, device), settings, precision_of(settings.precision, device), until)
    if own or config.calibrate == "client":
        calibrate(module, (x for x, _ in prepared(ground.train, ground.prepare, CALIBRATION_IMAGES)))
    return module.eval()


def _kept(order: TrainOrder, config: RunConfig, space: Space, home: Home) -> dict[str, Tensor]:
    """Return the private tensors that the client's last round before the order's left, nothing if there was none."""
    if not space.personal:
        return {}
    before = store_of(home).load(order.run, order.client, PURPOSE, order.round + repeats(config))
    return dict(before.tensors) if before else {}


def _first(order: TrainOrder, config: RunConfig, space: Space) -> dict[str, Tensor]:
    if not space.personal:
        return {}
    names = space.private(space.supernet)
    everything = initial_weights(space, derive(config.seed, order.client, PURPOSE))
    return {name: everything[name] for name in names}
