"""What the orders of a task and the answers to them must look like, for both ends of the wire."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from fednas_core.base.errors import ReplyError
from fednas_core.base.values import Arch
from fednas_core.devices.info import ClientInfo
from fednas_core.exchange.codecs import Shapes
from fednas_core.exchange.orders import WEIGHTS, Answer, Order, Result, Scalars
from fednas_core.exchange.results import at_most
from fednas_core.spaces.space import Space
from fednas_core.subnets.merge import check_values
from fednas_core.subnets.networks import shapes_of

P = TypeVar("P", bound=Scalars)
R = TypeVar("R", bound=Result)

Channels = Mapping[str, Shapes]
"""The channels of a message: names and shapes of the tensors of each, in the order in which they travel."""


def _nothing(order: Order) -> Channels:
    return {}


def _any(answer: Answer, order: Order) -> None:
    """Whatever has the right form is credible."""


@dataclass(frozen=True, slots=True)
class Schema(Generic[P, R]):
    """The form of a task's orders and answers.

    `params` and `result` are the types of their scalars. `sends` says which channels an order for an architecture
    holds, `returns` which the answer to an order. Channels named in `updates` are weights to be trained: they travel as
    setting ``wire.down`` says, and back as ``wire.up`` says, as a change of what was sent; all others travel exactly.
    `check` raises `ReplyError` for tensors that no client can have made.
    """

    params: type[P]
    result: type[R]
    sends: Callable[[Space, Arch], Channels]
    returns: Callable[[Order], Channels] = _nothing
    updates: tuple[str, ...] = ()
    check: Callable[[Answer, Order], None] = _any


def weights_of(space: Space, arch: Arch) -> Channels:
    """Return the channels of an order to train a network: its weights."""
    return {WEIGHTS: shapes_of(space, arch, statistics=False)}


def network_of(space: Space, arch: Arch) -> Channels:
    """Return the channels of an order to use a network: its weights and its batch statistics."""
    return {WEIGHTS: shapes_of(space, arch, statistics=True)}


def trained_weights(order: Order) -> Channels:
    """Return the channels of the answer to an order to train: the same weights."""
    return {WEIGHTS: {name: tuple(tensor.shape) for name, tensor in order.weights.items()}}


def credible(answer: Answer, order: Order, client: ClientInfo, schema: Schema[P, R], limit: float) -> None:
    """Raise `ReplyError`, naming what was found and what is allowed, unless a client can have given this answer.

    `limit` is the largest absolute value that its tensors may hold.
    """
    if answer.arch != order.arch or answer.round != order.round:
        raise ReplyError("answered for another architecture or round")
    if type(answer.result) is not schema.result:
        raise ReplyError(f"found a result of {type(answer.result).__name__}, allowed {schema.result.__name__}")
    for name in ("seconds", "macs"):
        value = getattr(answer, name)
        if not 0 <= value < float("inf"):
            raise ReplyError(f"{name}: found {value}, allowed a finite number from 0")
    most = client.examples + (0 if client.trains else client.held_out)
    at_most("examples", answer.examples, most, least=1 if schema.updates else 0)
    if answer.fresh and not order.trained:
        raise ReplyError("fresh: found true, allowed false: it had no private state of this run to lose")
    answer.result.check(client)
    wanted = schema.returns(order)
    if answer.channels.keys() != wanted.keys():
        there, allowed = (", ".join(names) or "none" for names in (answer.channels, wanted))
        raise ReplyError(f"channels: found {there}, allowed {allowed}")
    for name, shapes in wanted.items():
        check_values(answer.client, shapes, answer.channels[name], limit)
    schema.check(answer, order)
