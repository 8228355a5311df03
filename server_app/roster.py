"""Who can be called on: asks every node once which clients it serves and what its device can do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flwr.serverapp import Grid

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import FednasError, ReplyError, RunError
from fednas_core.base.units import few
from fednas_core.base.values import ClientId
from fednas_core.devices.budgets import budget_of
from fednas_core.devices.info import ClientInfo
from fednas_core.devices.profile import from_json
from fednas_core.exchange.wire import Packet
from fednas_core.tasks.bench import client_names, examples_of, space_of
from server_app.exchange import exchange
from server_app.records import Request, read_reply, reason, request

NODES_S = 60.0
"""How long to wait for another node while clients are missing; after that the run goes on with those that are there."""
REFUSED_S = 5.0
"""How long to wait for others when all nodes that came were refused."""
PROFILE_S = 180.0
"""How long a node may take to start its first process and measure itself."""
POLL_S = 0.2
HEAD_LIMIT = 10_000_000
MOST = 10**12
"""Images that a client can have, and the highest index: beyond it sums lose single ones, or are no numbers at all."""
FAILED = 2
"""Flower's code of an error that the ClientApp itself returned or raised; others come from the network between."""


@dataclass(frozen=True, slots=True)
class Member:
    """A client, the node that serves it and the index of its partition there."""

    info: ClientInfo
    node: int
    index: int


class Roster:
    """The clients of a federation: one for each part of the data when all are there."""

    def __init__(
        self,
        grid: Grid,
        config: RunConfig,
        announce: Callable[[str], None],
        nodes_s: float = NODES_S,
        profile_s: float = PROFILE_S,
    ) -> None:
        self._grid, self._config, self._announce = grid, config, announce
        self._wanted = sum(examples_of(config, index) > 0 for index, _ in enumerate(client_names(config)))
        self._nodes_s, self._profile_s = nodes_s, profile_s
        self._members: dict[int, tuple[Member, ...]] = {}
        self._refused: dict[int, str] = {}
        self._known: set[int] = set()
        self._gathered = False

    def members(self) -> dict[ClientId, Member]:
        """Return the clients whose nodes are there now, by name and sorted by name.

        The first call waits until all clients are there, or nobody has come for `nodes_s` seconds; later calls take who
        is there, newcomers included, and wait only if nobody is. Raises `RunError`, saying what to do, if nobody comes.
        """
        end = time.monotonic() + self._nodes_s
        while True:
            present = set(self._grid.get_node_ids())
            new = present - set(self._members) - set(self._refused)
            self._ask(new)
            if new - self._known:  # they come one by one, and answer slowly, where a machine is slow
                self._known |= new
                end = time.monotonic() + self._nodes_s
            found = _by_name(member for node in present for member in self._members.get(node, ()))
            if found and (self._gathered or len(found) >= self._wanted or time.monotonic() > end):
                break
            if not found and time.monotonic() > (end - self._nodes_s + REFUSED_S if present else end):
                raise RunError(self._nobody(present))
            time.sleep(POLL_S)
        if not self._gathered and len(found) < self._wanted:
            self._announce(f"{len(found)} of {self._wanted} clients are there: going on with them")
        self._gathered = True
        return found

    def _ask(self, nodes: set[int]) -> None:
        """Query the profiles of nodes that are new and remember who they serve, or why not."""
        ask = Request(Packet("{}", {}), self._config, 0)
        messages = ((node, request(ask, node, "query.profile")) for node in sorted(nodes))
        out: dict[str, list[str]] = {}
        for node, reply in exchange(self._grid, lambda: messages, self._profile_s):
            if reply is None or (reply.has_error() and reply.error.code != FAILED):
                why = f"no answer within {self._profile_s:.0f} seconds" if reply is None else reason(reply)
                out.setdefault(f"no part in this round: {why}", []).append(str(node))  # it may be there in the next
                continue
            try:
                self._members[node] = read_members(read_reply(reply).head, node, self._config)
            except ReplyError as error:
                self._refused[node] = str(error)
                out.setdefault(f"no part: {error}", []).append(str(node))
        for why, names in out.items():
            self._announce(f"node {names[0]} takes {why}" if len(names) == 1 else f"nodes {few(names)} take {why}")

    def _nobody(self, present: set[int]) -> str:
        refusals = sorted({self._refused[node] for node in present if node in self._refused})
        if refusals:
            return f"none of the {len(present)} nodes can take part: {'; '.join(refusals)}"
        return (
            f"no node came within {self._nodes_s:.0f} seconds: start SuperNodes (flower-supernode --superlink …) and "
            "look at  flwr supernode list; in a simulation set num-supernodes with --federation-config"
        )


def read_members(head: str, node: int, config: RunConfig) -> tuple[Member, ...]:
    """Return the clients that a node's answer to the profile query names; raise `ReplyError` for any other text.

    The answer is ``{"clients": [[name, index, examples, held out, [labels]], …], "profile": {…}, "budget": "20ms"}``,
    the labels being as many numbers as there are classes, or none.
    """
    space = space_of(config)
    try:
        if len(head) > HEAD_LIMIT:
            raise ValueError(f"{len(head)} characters")
        told = json.loads(head)
        profile, budget = from_json(space, told["profile"]), told["budget"]
        if not isinstance(budget, str):
            raise ValueError(f"budget {budget!r} is not text")
        budget_of(budget, config.budgets, space)
        rows = [
            (str(n), int(i), int(e), int(held), tuple(map(int, labels))) for n, i, e, held, labels in told["clients"]
        ]
        for name, index, examples, held, labels in rows:
            if not name or not (0 <= index <= MOST and 1 <= examples <= MOST and 0 <= held <= MOST):
                raise ValueError(
                    f"clients need a name, an index and images held out from 0, examples from 1, to {MOST}"
                )
            if labels and (len(labels) != space.signature.outputs or not 0 <= min(labels) <= max(labels) <= MOST):
                raise ValueError(f"labels are numbers of images of each of {space.signature.outputs} classes, or none")
    except (ValueError, OverflowError, KeyError, TypeError, RecursionError, FednasError) as error:
        raise ReplyError(f"its profile cannot be used: {error!r}"[:300]) from None
    return tuple(
        Member(ClientInfo(name, examples, profile, budget, labels=labels, held_out=held), node, index)
        for name, index, examples, held, labels in rows
    )


def _by_name(members: Iterable[Member]) -> dict[ClientId, Member]:
    found: dict[ClientId, Member] = {}
    for member in sorted(members, key=lambda member: (member.info.name, member.node)):
        other = found.setdefault(member.info.name, member)
        if other is not member:
            raise RunError(
                f"nodes {other.node} and {member.node} both serve client '{member.info.name}': start each SuperNode "
                "with a partition-id (or name) of its own in --node-config"
            )
    return found
