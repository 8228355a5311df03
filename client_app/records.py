"""The device's side of a message: order packets in, answer packets out."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fednas_core.exchange.wire import Packet


@dataclass(frozen=True, slots=True)
class Request:
    """A packet, settings and facts of the run as JSON, the number of the client, and the hash of the server's code.

    Settings that have their default are left out.
    """

    packet: Packet
    settings: str
    facts: str
    index: int
    code: str


def read_request(content: RecordDict) -> Request:
    """Return what the server sent: the records `fednas` and `tensors`."""
    record = content.config_records["fednas"]
    arrays = content.array_records.get("tensors") or ArrayRecord()
    buffers = {name: array.data for name, array in arrays.items()}
    return Request(
        packet=Packet(str(record["head"]), buffers),
        settings=str(record["settings"]),
        facts=str(record["facts"]),
        index=int(str(record["index"])),
        code=str(record["code"]),
    )


def reply_content(packet: Packet) -> RecordDict:
    """Return the records of a reply."""
    arrays = {name: Array(name, (len(buffer),), "fednas.flat", buffer) for name, buffer in packet.buffers.items()}
    return RecordDict({"fednas": ConfigRecord({"head": packet.head}), "tensors": ArrayRecord(arrays)})
