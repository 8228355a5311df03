"""The server's side of a message: requests out, packets of whatever came back in."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ReplyError
from fednas_core.base.fingerprint import fingerprint
from fednas_core.base.settings import flatten
from fednas_core.exchange.wire import Packet
from fednas_core.tasks.bench import facts_of

REASON_LENGTH = 300
RAISED = re.compile(r"^<class '(?:\w+\.)*(\w+)'>:<'")
"""How a deployed client's process tells what it raised: ``<class 'OSError'>:<'text'>``."""


@dataclass(frozen=True, slots=True)
class Request:
    """A packet for the client that holds the part of the data with number `index`, and the settings of the run.

    The settings travel, since those of Flower's own run are not these when an older run is resumed.
    """

    packet: Packet
    config: RunConfig
    index: int


def request(ask: Request, node: int, kind: str, ttl_s: float | None = None) -> Message:
    """Return the message of a request to a node; `kind` as Flower names it, e.g. ``train`` or ``query.profile``.

    After `ttl_s` seconds (12 hours unless given) the message is not delivered any more.
    """
    record = ConfigRecord(
        {
            "head": ask.packet.head,
            "settings": _settings(ask.config),
            "facts": json.dumps(facts_of(ask.config).to_json()),
            "index": ask.index,
            "code": fingerprint().digest,
        }
    )
    buffers = ask.packet.buffers.items()
    arrays = ArrayRecord({name: Array(name, (len(buffer),), "fednas.flat", buffer) for name, buffer in buffers})
    return Message(RecordDict({"fednas": record, "tensors": arrays}), dst_node_id=node, message_type=kind, ttl=ttl_s)


@lru_cache(maxsize=4)
def _settings(config: RunConfig) -> str:
    """Return the settings as JSON, those left out that have their default: both sides run the same code."""
    default = flatten(RunConfig())
    return json.dumps({key: value for key, value in flatten(config).items() if value != default[key]})


def read_reply(reply: Message) -> Packet:
    """Return the packet of a reply; raise `ReplyError` with the reason if it holds an error or no packet."""
    if reply.has_error():
        raise ReplyError(reason(reply))
    content = reply.content
    record = content.config_records.get("fednas") or ConfigRecord()
    arrays = content.array_records.get("tensors") or ArrayRecord()
    head = record.get("head")
    if not isinstance(head, str):
        raise ReplyError("the reply holds no fednas record: found other records, allowed 'fednas' with a text 'head'")
    return Packet(head, {name: array.data for name, array in arrays.items()})


def reason(reply: Message) -> str:
    """Return why a reply is an error, in one line: the last line of a traceback says most."""
    lines = (reply.error.reason or "").replace("\\n", "\n").splitlines()
    told = next((line for line in reversed(lines) if line.strip()), f"Flower error {reply.error.code}")
    told = told.strip().removeprefix("Exception ClientAppException occurred. Message: ").removesuffix("'>")
    told = RAISED.sub(r"\1: ", told)
    return told if len(told) <= REASON_LENGTH else told[: REASON_LENGTH - 3] + "..."
