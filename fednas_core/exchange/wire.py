"""Orders and reports as packets: a JSON head and one flat buffer of bytes, without any network.

Many small arrays are slow on a network, so a subnet travels as one. What lies in it follows from the architecture,
which both sides lay out alike; a digest of the layout says so. How many bits a value takes is the run's choice
(`fednas_core.exchange.codecs`). Whatever comes back is treated as hostile: sizes are checked against the order before
anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pickle import PickleBuffer
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from fednas_core.base.config import WireConfig
from fednas_core.base.errors import ReplyError
from fednas_core.base.seeding import derive
from fednas_core.exchange.codecs import EXACT, Codec, Shapes, codec
from fednas_core.exchange.orders import TrainOrder, TrainReport
from fednas_core.spaces.space import Space
from fednas_core.subnets.moments import moment_shapes
from fednas_core.subnets.networks import shapes_of
from fednas_core.subnets.packing import pack, unpack
from fednas_core.training.settings import TrainSettings

KINDS: Mapping[str, type] = {"str": str, "ClientId": str, "int": int, "float": float, "bool": bool}
"""How the fields of an order or report that are neither arch, settings, figures nor tensors are annotated."""
HEAD_LIMIT = 16_384
"""Characters a reply's head may have, besides its architecture."""
FIGURES, FIGURE_NAME = 100, 100
"""How many figures a reply may hold, and how many characters the name of one may have."""


@dataclass(frozen=True, slots=True)
class Packet:
    """What travels: `head` is a JSON object, `buffers` holds the values under the name of their codec, or nothing."""

    head: str
    buffers: Mapping[str, bytes]

    @property
    def size(self) -> int:
        """The payload in bytes: that of the buffers."""
        return sum(len(buffer) for buffer in self.buffers.values())


def lossless(wire: WireConfig) -> bool:
    """Whether tensors arrive as they were sent, both ways."""
    return wire.down == wire.up == "fp32"


def pack_order(order: TrainOrder, wire: WireConfig) -> Packet:
    """Return the packet of an order, its weights encoded as `wire.down` says; `read_order` is the inverse.

    Weights from which nothing returns are delivered for good: they travel exactly. Raises `ReplyError` for weights
    that cannot travel so.
    """
    down, there = _down(wire, order.returns), _shapes(order.tensors)
    head = _scalars(order) | {"arch": order.arch.to_json(), "settings": asdict(order.settings)}
    payload = down.encode(pack(order.tensors), there, _seed(order, "down"))
    return Packet(json.dumps(head | {"layout": _digest(down, there)}), {down.name: _bytes(payload)})


def read_order(packet: Packet, space: Space, wire: WireConfig) -> TrainOrder:
    """Return the order of a packet that the server of the same code made, for an architecture of `space`.

    Raises `ReplyError` if the server's space or buffer is another than this one.
    """
    head = json.loads(packet.head)
    arch, down = space.arch(head["arch"]), _down(wire, head["returns"])
    there = shapes_of(space, arch, statistics=head["returns"] != "weights")
    if head["layout"] != _digest(down, there):
        raise ReplyError(
            f"the search space '{space.name}' of this device lays out the network {arch} in another way than the "
            "server's: give both the same preset file"
        )
    return TrainOrder(
        arch=arch,
        tensors=unpack(down.decode(_payload(packet, down, there), there), there),
        settings=TrainSettings(**head["settings"]),
        **{key: head[key] for key in _kinds(TrainOrder)},
    )


def pack_report(report: TrainReport, order: TrainOrder, wire: WireConfig, residual: Tensor | None = None) -> Packet:
    """Return the packet of the report on an order; `read_report` is the inverse.

    Unless `wire.up` is fp32 it holds the change of the order's tensors. `residual` (flat, float32) is added to that
    change; afterwards it holds what of the sum was not sent. Raises `ReplyError` if the report's tensors are not those
    of the order or too large to travel.
    """
    head = _scalars(report) | {"arch": report.arch.to_json(), "figures": dict(report.figures)}
    if order.returns == "figures":
        return Packet(json.dumps(head), {})
    up, there = _up(wire, order.returns), returned(order)
    found = _shapes(report.tensors)
    for name in [*there, *found]:
        _same(f"tensor '{name}'", found.get(name), there.get(name))
    flat = pack({name: report.tensors[name] for name in there})
    if up != EXACT:
        flat = flat - pack(order.tensors)
        if residual is not None:
            flat += residual
    payload = up.encode(flat, there, _seed(order, "up"))
    if residual is not None:
        torch.sub(flat, up.decode(payload, there), out=residual)
    return Packet(json.dumps(head | {"layout": _digest(up, there)}), {up.name: _bytes(payload)})


def read_report(packet: Packet, order: TrainOrder, wire: WireConfig) -> TrainReport:
    """Return the report of a packet, which anybody may have made, as the answer to `order`.

    A change is added to the order's own tensors. The bytes of both payloads are counted here. Raises `ReplyError`
    naming the client, the field or buffer, what was found and what is allowed, unless the report names the client,
    round and architecture of the order and its buffer is one that `wire.up` can make of the order's tensors.
    """
    try:
        head = _head(packet.head, HEAD_LIMIT + len(str(order.arch)))
        values = {key: _scalar(head, key, kind) for key, kind in _kinds(TrainReport).items()}
        for key, wanted in (("client", order.client), ("round", order.round), ("arch", order.arch.to_json())):
            _same(key, head.get(key), wanted)
        figures = _figures(head.get("figures"))
        tensors = _returned(head, packet, order, _up(wire, order.returns))
    except ReplyError as error:
        raise ReplyError(f"client {order.client}: {error}") from None
    report = TrainReport(arch=order.arch, tensors=tensors, figures=figures, **values)
    down = _down(wire, order.returns).size(_shapes(order.tensors))
    return replace(report, bytes_down=down, bytes_up=packet.size)


def returned(order: TrainOrder) -> Shapes:
    """Return names and shapes of the tensors that the answer to an order holds, in the order in which they travel."""
    if order.returns == "figures":
        return {}
    there = _shapes(order.tensors)
    return there if order.returns == "weights" else moment_shapes(there)


def _down(wire: WireConfig, returns: str) -> Codec:
    return codec(wire.down, wire.keep) if returns == "weights" else EXACT


def _up(wire: WireConfig, returns: str) -> Codec:
    return codec(wire.up, wire.keep) if returns == "weights" else EXACT


def _returned(head: Mapping[str, Any], packet: Packet, order: TrainOrder, up: Codec) -> Mapping[str, Tensor]:
    there = returned(order)
    if order.returns == "figures":
        _same("arrays", sorted(packet.buffers), [])
        return {}
    _same("layout", head.get("layout"), _digest(up, there))
    flat = up.decode(_payload(packet, up, there), there)
    return unpack(flat if up == EXACT else flat.add_(pack(order.tensors)), there)


class Flat(bytes):
    """Bytes that go from process to process without a copy on the way: pickle hands their memory over as it is.

    Where they arrive they are a read-only `memoryview`.
    """

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """Offer the memory out of band (PEP 574)."""
        return (_as_it_is, (PickleBuffer(self),)) if int(protocol) >= 5 else (bytes, (bytes(self),))


def _as_it_is(buffer: bytes | memoryview) -> bytes | memoryview:
    return buffer


def _bytes(payload: Tensor) -> bytes:
    return Flat(payload.detach().cpu().numpy())


def _payload(packet: Packet, codec: Codec, there: Shapes) -> Tensor:
    """Return a writable copy of the packet's buffer; raise `ReplyError` before it allocates if the size is wrong."""
    _same("arrays", sorted(packet.buffers), [codec.name])
    buffer, wanted = packet.buffers[codec.name], codec.size(there)
    if len(buffer) != wanted:
        raise ReplyError(f"array '{codec.name}': found {len(buffer)} bytes, allowed {wanted}")
    payload = torch.empty(wanted, dtype=torch.uint8)
    np.copyto(payload.numpy(), np.frombuffer(buffer, dtype=np.uint8))
    return payload


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ReplyError(f"tensor '{name}': found {tensor.dtype}, allowed torch.float32")
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _digest(codec: Codec, there: Shapes) -> str:
    """Return what stands for the layout of a buffer: a hash of codec, names and shapes, in order."""
    return hashlib.sha256(json.dumps([codec.name, list(there.items())]).encode()).hexdigest()[:16]


def _seed(order: TrainOrder, way: str) -> int:
    return derive(order.seed, order.round, order.client, way)


def _kinds(kind: type[TrainOrder] | type[TrainReport]) -> dict[str, type]:
    return {item.name: KINDS[str(item.type)] for item in fields(kind) if str(item.type) in KINDS}


def _scalars(value: TrainOrder | TrainReport) -> dict[str, Any]:
    return {key: getattr(value, key) for key in _kinds(type(value))}


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


def _figures(found: object) -> dict[str, float]:
    if not isinstance(found, dict) or len(found) > FIGURES:
        raise ReplyError(f"figures: found {_shown(found)}, allowed at most {FIGURES} numbers by name")
    for name in found:
        if len(name) > FIGURE_NAME or not (name.isascii() and name.isidentifier()):
            raise ReplyError(f"figures: found the name {_shown(name)}, allowed are names such as latency_ms")
    return {name: _scalar(found, name, float) for name in found}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
