"""Sending messages and taking the replies as they arrive: the one loop that talks to Flower's grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from fednas_core.base.errors import RunError

Key = TypeVar("Key")

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.2
"""Bounds of the pause between two polls: short in a simulation, where a poll is cheap, longer over a network."""
POLL_SHARE = 0.1
"""Polling takes at most this share of the server's time between those bounds."""


def exchange(
    grid: Grid, more: Callable[[], Iterable[tuple[Key, Message]]], silence_s: float
) -> Iterator[tuple[Key, Message | None]]:
    """Push messages one by one and yield each key with its reply, in the order of arrival; with None if there is none.

    `more` is asked again and again for messages that have come up, until it gives none and no reply is awaited.

    A reply is given up when nothing at all has arrived for `silence_s` seconds: clients keep their own deadline, so
    that one which is alive answers within it, if only to say that it was too slow. A reply is an error of Flower's own
    (a node lost, a message expired), a client's, or a client's answer; replies to nothing that was sent are dropped.

    Raises `RunError` if a process of the simulation has died: its slot would swallow all further work.
    """
    waiting: dict[str, Key] = {}
    heard = time.monotonic()
    while True:
        for key, message in more():
            ids = [name for name in grid.push_messages([message]) if name]
            heard = time.monotonic()
            if ids:
                waiting[ids[0]] = key
            else:
                yield key, None
        if not waiting:
            break
        start = time.monotonic()
        replies = list(grid.pull_messages(list(waiting)))
        for reply in replies:
            known = reply.metadata.reply_to_message_id
            if known in waiting:
                _refuse_dead_actor(reply)
                yield waiting.pop(known), reply
        now = time.monotonic()
        heard = now if replies else heard
        if now - heard > silence_s:
            break
        if waiting and not replies:
            time.sleep(min(max((now - start) / POLL_SHARE, SHORTEST_PAUSE_S), LONGEST_PAUSE_S))
    yield from ((key, None) for key in waiting.values())


def _refuse_dead_actor(reply: Message) -> None:
    text = (reply.error.reason or "") if reply.has_error() else ""
    if "ActorDiedError" in text or "ActorUnavailableError" in text:
        raise RunError(
            "a process of the simulation died (often for lack of memory), and Flower would send it all further work; "
            "start again with fewer clients at a time (a larger client-resources-num-cpus in --federation-config), "
            "a smaller space or a smaller train.batch, and continue with resume='<id>'"
        )
