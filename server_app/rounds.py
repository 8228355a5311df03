"""The fleet behind Flower's grid: orders out and every answer back as it arrives."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ReplyError
from fednas_core.base.values import ClientId
from fednas_core.devices.info import ClientInfo
from fednas_core.exchange.orders import Answer, Failure, Order
from fednas_core.exchange.wire import form_of, pack_order, read_answer
from fednas_core.tasks.registry import FORMS
from server_app.exchange import exchange
from server_app.records import Request, read_reply, request
from server_app.roster import Member, Roster

GRACE_S = 30.0
"""Seconds beyond the deadline that the server waits for an answer: for transfers and the start of processes."""
LONGEST_TTL_S = 43_200.0
"""An order that a node has not fetched by then is void; a simulated node may fetch its own only after all others."""


class GridFleet:
    """Clients reached through Flower, simulated or deployed (implements `fednas_core.exchange.orders.Fleet`)."""

    def __init__(self, grid: Grid, config: RunConfig, roster: Roster, grace_s: float = GRACE_S) -> None:
        self._grid, self._roster = grid, roster
        self._deadline_s, self._silence_s = config.deadline, config.deadline + grace_s
        self._config = config
        self._members: dict[ClientId, Member] = {}

    def clients(self) -> Sequence[ClientInfo]:
        """Return the clients whose nodes are there now, sorted by name; raise `RunError` if there are none."""
        there = self._roster.members()
        self._members |= there  # an order may still wait for a client that has just left
        return [member.info for member in there.values()]

    def train(self, orders: Mapping[ClientId, Order], more: deque[Order] | None = None) -> Iterator[Answer | Failure]:
        """Carry out the orders, started in the mapping's order, and yield one answer for each as they arrive.

        A node has one order at a time; those for its other clients wait here, so that Flower's queue holds no more of
        them than there are nodes. Whatever a client does wrong becomes a `Failure` with its reason, and so does an
        order that cannot be sent. Raises `RunError` if no more work can be done at all.
        """
        waiting = deque() if more is None else more
        waiting.extendleft(reversed(list(orders.values())))
        ttl_s = min(LONGEST_TTL_S, self._silence_s * max(1, len(orders)))
        busy: set[int] = set()
        unsent = deque[Failure]()

        def messages() -> Iterator[tuple[tuple[Order, int], Message]]:
            """Yield what waits now; asked again, what has come up since."""
            for _ in range(len(waiting)):
                order = waiting.popleft()
                node = self._members[order.client].node
                if node in busy:
                    waiting.append(order)
                    continue
                try:
                    message = self._message(order, ttl_s)
                except ReplyError as error:
                    unsent.append(Failure(order.client, str(error)))
                    continue
                busy.add(node)
                yield (order, node), message

        def failures() -> Iterator[Failure]:
            while unsent:
                yield unsent.popleft()

        while waiting:  # again if a node that was given up had kept others waiting
            for (order, node), reply in exchange(self._grid, messages, self._silence_s):
                busy.discard(node)
                yield self._answer(order, reply)
                yield from failures()
            yield from failures()

    def close(self) -> None:
        """Nothing to release: Flower ends the processes."""

    def _message(self, order: Order, ttl_s: float) -> Message:
        member = self._members[order.client]
        ask = Request(pack_order(order, form_of(FORMS, order.task), self._config.wire), self._config, member.index)
        return request(ask, member.node, "train", ttl_s)

    def _answer(self, order: Order, reply: Message | None) -> Answer | Failure:
        if reply is None:
            return Failure(order.client, f"no answer within the deadline of {self._deadline_s:g} seconds")
        try:
            return read_answer(read_reply(reply), order, form_of(FORMS, order.task), self._config.wire)
        except ReplyError as error:
            return Failure(order.client, str(error).removeprefix(f"client {order.client}: "))


def open_fleet(grid: Grid, config: RunConfig, announce: Callable[[str], None]) -> GridFleet:
    """Return the fleet of a run."""
    return GridFleet(grid, config, Roster(grid, config, announce))
