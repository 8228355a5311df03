"""The waiting room: replies of a round wait until the last one is in, then go on in a fixed order.

Only then is it known which update is far from the cohort's median, and only in a fixed order do sums come out the same
to the last bit. Most replies wait on disk: the server's memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from fednas_core.base.values import ClientId
from fednas_core.exchange.orders import WEIGHTS, Answer
from fednas_core.subnets.packing import pack, unpack
from fednas_core.subnets.shelf import Shelf

Shapes = dict[str, tuple[int, ...]]


class WaitingRoom:
    """Replies of one round, at most one of each client; half a supernet's size of them waits in memory."""

    def __init__(self, supernet: Mapping[str, Tensor]) -> None:
        self._shelf = Shelf(sum(tensor.numel() * tensor.element_size() for tensor in supernet.values()) // 2)
        self._there: dict[ClientId, tuple[Answer, Shapes, int]] = {}

    def admit(self, answer: Answer) -> None:
        """Let a reply that `check_tensors` accepts wait; raise `RunError` if the disk does not take it."""
        shapes = {name: tuple(tensor.shape) for name, tensor in answer.weights.items()}
        self._there[answer.client] = replace(answer, channels={}), shapes, self._shelf.put(pack(answer.weights))

    def seen(self, clients: Iterable[ClientId]) -> Iterator[Answer]:
        """Yield the replies of these clients one by one, in this order; they go on waiting.

        Their tensors, which the caller may change, are those of one buffer: they hold until the next reply comes.
        """
        buffer = torch.empty(max((sum(map(prod, shapes.values())) for _, shapes, _ in self._there.values()), default=0))
        for client in clients:
            answer, shapes, number = self._there[client]
            yield replace(answer, channels={WEIGHTS: unpack(self._shelf.read(number, out=buffer), shapes)})

    def called(self, clients: Iterable[ClientId]) -> Iterator[Answer]:
        """Yield the replies like `seen`; their places in memory are given back."""
        for answer in self.seen(clients):
            self._shelf.drop(self._there.pop(answer.client)[2])
            yield answer

    def close(self) -> None:
        """Give memory and disk back."""
        self._there.clear()
        self._shelf.clear()
