"""What a client can be asked to do: the form of its orders and answers, and the function that does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fednas_core.exchange.orders import Order, Result, Scalars, Tensors
from fednas_core.exchange.schema import Schema
from fednas_core.tasks.site import Site

P = TypeVar("P", bound=Scalars)
R = TypeVar("R", bound=Result)


@dataclass(frozen=True, slots=True)
class Work(Generic[R]):
    """What a task leaves: what it found, what it computed in multiply-accumulates, and channels for the server."""

    result: R
    macs: int
    channels: Mapping[str, Tensors] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoParams:
    """The parameters of a task that has none."""


@dataclass(frozen=True, slots=True)
class Task(Generic[P, R]):
    """A task by its `schema`; `perform` is given the order, its parameters, the site and the deadline.

    The deadline is on the clock of `time.monotonic`. `memory` says how many bytes of it the work takes, and what the
    work is, in words. `personal` tasks complete the network with the client's own layers, if it has any.
    """

    schema: Schema[P, R]
    perform: Callable[[Order, P, Site, float], Work[R]]
    memory: Callable[[Order, P, Site], tuple[int, str]]
    personal: bool = False


AnyTask = Task[Any, Any]
