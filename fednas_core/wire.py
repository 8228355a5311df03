"""Orders and reports as packets: a JSON head and one flat buffer of bytes for each dtype, without any network.

Many small arrays are slow on a network, so a subnet travels as one; the head's `layout` says what lies in it. Whatever
comes back is treated as hostile: sizes are checked against the order before anything is allocated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from pickle import PickleBuffer
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from fednas_core.errors import ReplyError
from fednas_core.protocol import TrainOrder, TrainReport, TrainSettings
from fednas_core.subnets.packing import pack, unpack
from fednas_core.values import Arch

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}
"""The dtypes that may travel, by name."""
KINDS: Mapping[str, type] = {"str": str, "ClientId": str, "int": int, "float": float}
"""How the fields of an order or report that are neither arch, settings nor tensors are annotated."""
HEAD_SLACK = 2048
"""Characters a reply's head may be longer than its layout."""

Layout = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, dtype and shape of every tensor, in the order in which they lie in their dtype's buffer."""


@dataclass(frozen=True, slots=True)
class Packet:
    """What travels: `head` is a JSON object, `buffers` the flat bytes of all tensors of one dtype under its name."""

    head: str
    buffers: Mapping[str, bytes]

    @property
    def size(self) -> int:
        """The payload in bytes: that of the buffers."""
        return sum(len(buffer) for buffer in self.buffers.values())


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    """Return the layout of tensors; raise `ReplyError` for a dtype that cannot travel."""
    rows = []
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise ReplyError(f"tensor '{name}': found {dtype}, allowed {', '.join(DTYPES)}")
        rows.append((name, dtype, tuple(tensor.shape)))
    return tuple(rows)


def buffers_of(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Return one flat buffer for each dtype (see `layout_of`)."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, dtype, _ in layout_of(tensors):
        groups.setdefault(dtype, {})[name] = tensors[name]
    return {dtype: _bytes(pack(group)) for dtype, group in groups.items()}


def tensors_of(layout: Layout, buffers: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Return the tensors that a layout describes: writable views of one flat tensor for each dtype.

    Raises `ReplyError`, before it allocates, if the buffers are not exactly as long as the layout says.
    """
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, dtype, shape in layout:
        groups.setdefault(dtype, {})[name] = shape
    if set(buffers) != set(groups):
        raise ReplyError(f"arrays: found {sorted(buffers)}, allowed {sorted(groups)}")
    for dtype, shapes in groups.items():
        wanted = sum(prod(shape) for shape in shapes.values()) * DTYPES[dtype].itemsize
        if len(buffers[dtype]) != wanted:
            raise ReplyError(f"array '{dtype}': found {len(buffers[dtype])} bytes, allowed {wanted}")
    parts: dict[str, Tensor] = {}
    for dtype, shapes in groups.items():
        parts.update(unpack(_flat(buffers[dtype], DTYPES[dtype]), shapes))
    return {name: parts[name] for name, _, _ in layout}


def pack_order(order: TrainOrder) -> Packet:
    """Return the packet of an order; `read_order` is the inverse."""
    head = _scalars(order) | {"arch": order.arch.to_json(), "settings": asdict(order.settings)}
    return Packet(json.dumps(head | {"layout": layout_of(order.tensors)}), buffers_of(order.tensors))


def read_order(packet: Packet) -> TrainOrder:
    """Return the order of a packet that the server of the same code made."""
    head = json.loads(packet.head)
    values = {key: head[key] for key in _kinds(TrainOrder)}
    return TrainOrder(
        arch=_arch(head["arch"]),
        tensors=tensors_of(_layout(head["layout"]), packet.buffers),
        settings=TrainSettings(**head["settings"]),
        **values,
    )


def pack_report(report: TrainReport) -> Packet:
    """Return the packet of a report; `read_report` is the inverse."""
    head = _scalars(report) | {"arch": report.arch.to_json(), "layout": layout_of(report.tensors)}
    return Packet(json.dumps(head), buffers_of(report.tensors))


def read_report(packet: Packet, order: TrainOrder) -> TrainReport:
    """Return the report of a packet, which anybody may have made, as the answer to `order`.

    Its bytes are counted here: both payloads. Raises `ReplyError` naming the client, the field or tensor, what was
    found and what is allowed, unless the report names the client, round and architecture of the order and its tensors
    have the names, dtypes and shapes that were sent.
    """
    try:
        layout = layout_of(order.tensors)
        head = _head(packet.head, len(json.dumps(layout)) + len(str(order.arch)) + HEAD_SLACK)
        values = {key: _scalar(head, key, kind) for key, kind in _kinds(TrainReport).items()}
        for key, wanted in (("client", order.client), ("round", order.round), ("arch", order.arch.to_json())):
            _same(key, head.get(key), wanted)
        _same_layout(head.get("layout"), layout)
        report = TrainReport(arch=order.arch, tensors=tensors_of(layout, packet.buffers), **values)
    except ReplyError as error:
        raise ReplyError(f"client {order.client}: {error}") from None
    down = sum(tensor.numel() * tensor.element_size() for tensor in order.tensors.values())
    return replace(report, bytes_down=down, bytes_up=packet.size)


class Flat(bytes):
    """Bytes that go from process to process without a copy on the way: pickle hands their memory over as it is.

    Where they arrive they are a read-only `memoryview`.
    """

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """Offer the memory out of band (PEP 574)."""
        return (_as_it_is, (PickleBuffer(self),)) if int(protocol) >= 5 else (bytes, (bytes(self),))


def _as_it_is(buffer: bytes | memoryview) -> bytes | memoryview:
    return buffer


def _bytes(flat: Tensor) -> bytes:
    return Flat(flat.detach().cpu().contiguous().view(torch.uint8).numpy())


def _flat(buffer: bytes, dtype: torch.dtype) -> Tensor:
    flat = torch.empty(len(buffer) // dtype.itemsize, dtype=dtype)
    np.copyto(flat.view(torch.uint8).numpy(), np.frombuffer(buffer, dtype=np.uint8))
    return flat


def _kinds(kind: type[TrainOrder] | type[TrainReport]) -> dict[str, type]:
    return {item.name: KINDS[str(item.type)] for item in fields(kind) if str(item.type) in KINDS}


def _scalars(value: TrainOrder | TrainReport) -> dict[str, Any]:
    return {key: getattr(value, key) for key in _kinds(type(value))}


def _arch(genes: Mapping[str, list[int | float]]) -> Arch:
    return Arch(tuple((key, tuple(values)) for key, values in genes.items()))


def _layout(rows: list[tuple[str, str, list[int]]]) -> Layout:
    return tuple((name, dtype, tuple(shape)) for name, dtype, shape in rows)


def _head(text: str, limit: int) -> dict[str, Any]:
    if len(text) > limit:
        raise ReplyError(f"head: found {len(text)} characters, allowed {limit}")
    try:
        head = json.loads(text)
    except (ValueError, RecursionError):
        raise ReplyError("head: found something that is not JSON, allowed a JSON object") from None
    if not isinstance(head, dict):
        raise ReplyError(f"head: found {type(head).__name__}, allowed a JSON object")
    return head


def _scalar(head: Mapping[str, Any], key: str, kind: type) -> Any:
    value: object = head.get(key)
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    allowed = {str: "text", int: "a whole number from 0", float: "a finite number"}
    low = 0 if kind is int else -(2**63)
    if type(value) is not kind or (isinstance(value, (int, float)) and not low <= value < 2**63):
        raise ReplyError(f"{key}: found {_shown(value)}, allowed {allowed[kind]}")
    return value


def _same(key: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise ReplyError(f"{key}: found {_shown(found)}, allowed {_shown(wanted)}")


def _same_layout(found: object, wanted: Layout) -> None:
    rows = [[name, dtype, list(shape)] for name, dtype, shape in wanted]
    if found == rows:
        return
    if not isinstance(found, list) or len(found) != len(rows):
        count = len(found) if isinstance(found, list) else _shown(found)
        raise ReplyError(f"layout: found {count} tensors, allowed {len(rows)}")
    for there, here in zip(found, rows, strict=True):
        if there != here:
            raise ReplyError(f"tensor '{here[0]}': found {_shown(there)}, allowed {_shown(here)}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
