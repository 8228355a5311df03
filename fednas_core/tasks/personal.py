"""FedPer on the client (arXiv 1912.00818, algorithm "client"): layers that are trained here and never leave.

A client keeps full-size tensors of its private layers, made once from a seed of its own; every network it is given
uses the region of them that its architecture owns. So personal layers go with any space, method and architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fednas_core.base.seeding import derive
from fednas_core.base.values import State
from fednas_core.exchange.orders import Order
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.space import Space
from fednas_core.subnets.networks import calibrate, network
from fednas_core.subnets.packing import views
from fednas_core.tasks.bench import precision_of
from fednas_core.tasks.images import epochs_of, prepared
from fednas_core.tasks.site import Site
from fednas_core.training.loop import train
from fednas_core.training.settings import TrainSettings

PURPOSE = "personal"
"""The name of the private layers in the client's private state."""
CALIBRATION_IMAGES = 512


@dataclass(frozen=True, slots=True)
class Adaptation:
    """How a device makes a network that it receives its own before it uses it.

    A client that has layers of its own and never trained `fit`s them; with `calibrate` it sets the batch statistics of
    every network by its own images.
    """

    fit: TrainSettings
    calibrate: bool


def completed(order: Order, site: Site) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of the order's whole network, and the client's full-size private ones, which they look into.

    W_P is initialised once, at random; then it is what the client's last round left.
    """
    own = _kept(order, site) or _first(order, site.seed, site.space)
    return {**order.weights, **views(own, site.space.private(order.arch))}, own


def keep(own: Mapping[str, Tensor], trained: Mapping[str, Tensor], order: Order, site: Site) -> None:
    """Keep what the round made of the private layers; raise `RunError` if the device cannot."""
    mine = views(own, site.space.private(order.arch))
    if mine:
        torch._foreach_copy_(list(mine.values()), [trained[name].detach().cpu() for name in mine])
    if own:  # of a network without private layers too: who has trained has a state
        site.store.save(order.run, order.client, PURPOSE, order.round, State(own))


def ready(order: Order, how: Adaptation, site: Site, until: float) -> nn.Module:
    """Return the order's network as this client uses it, in evaluation mode on the site's device.

    A newcomer fits the private layers that the network has to its images, the shared layers as they are. `until` is the
    deadline of that on the clock of `time.monotonic`.
    """
    tensors, own = completed(order, site)
    module = network(site.space, order.arch, tensors, site.device)
    if site.space.private(order.arch) and not _kept(order, site):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in order.weights)
        epochs = epochs_of(how.fit, derive(site.seed, order.client, PURPOSE, "fit"), site)
        train(module, epochs, how.fit, precision_of(how.fit.precision, site.device), until)
    if own or how.calibrate:
        calibrate(module, (x for x, _ in prepared(site.train, site.prepare, CALIBRATION_IMAGES)))
    return module.eval()


def _kept(order: Order, site: Site) -> dict[str, Tensor]:
    """Return the private tensors that the client's last round before the order's left, nothing if there was none."""
    if not site.space.personal:
        return {}
    before = site.store.load(order.run, order.client, PURPOSE, order.round + site.repeats)
    return dict(before.tensors) if before else {}


def _first(order: Order, seed: int, space: Space) -> dict[str, Tensor]:
    if not space.personal:
        return {}
    names = space.private(space.supernet)
    everything = initial_weights(space, derive(seed, order.client, PURPOSE))
    return {name: everything[name] for name in names}
