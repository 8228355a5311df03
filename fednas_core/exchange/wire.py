"""Orders and answers as packets: a JSON head and a flat buffer of bytes for each channel, without any network.

Many small arrays are slow on a network, so the tensors of a channel travel as one. What lies in it follows from the
task's schema and the architecture, which both sides lay out alike; a digest of the layout says so. How many bits a
value takes is the run's choice (`fednas_core.exchange.codecs`). Whatever comes back is treated as hostile: sizes are
checked against the order before anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pickle import PickleBuffer
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from fednas_core.base.config import WireConfig
from fednas_core.base.errors import ReplyError
from fednas_core.base.seeding import derive
from fednas_core.exchange.codecs import EXACT, Codec, Shapes, codec
from fednas_core.exchange.orders import WEIGHTS, Answer, Order, Result, Tensors
from fednas_core.exchange.scalars import read, scalar, shown, told
from fednas_core.exchange.schema import Channels, Schema
from fednas_core.spaces.space import SearchSpace
from fednas_core.subnets.packing import pack, unpack

Form = Schema[Any, Any]
HEAD_LIMIT = 16_384
"""Characters an answer's head may have, besides its architecture."""
ORDER = {
    "client": str, "round": int, "task": str, "seed": int, "budget": str, "run": str, "trains": bool, "trained": bool
}  # fmt: skip
"""The scalars of an order, besides its parameters."""
ANSWER = {"client": str, "round": int, "examples": int, "macs": int, "seconds": float, "fresh": bool}
"""The scalars of an answer, besides its result."""


@dataclass(frozen=True, slots=True)
class Packet:
    """What travels: `head` is a JSON object, `buffers` holds the values of each channel under ``channel.codec``."""

    head: str
    buffers: Mapping[str, bytes]

    @property
    def size(self) -> int:
        """The payload in bytes: that of the buffers."""
        return sum(len(buffer) for buffer in self.buffers.values())


def lossless(wire: WireConfig) -> bool:
    """Whether tensors arrive as they were sent, both ways."""
    return wire.down == wire.up == "fp32"


def form_of(forms: Mapping[str, Form], task: object) -> Form:
    """Return the form of a task; raise `ReplyError` if it is none of `forms`."""
    if not isinstance(task, str) or task not in forms:
        raise ReplyError(f"task {shown(task)} is not known here: allowed are {', '.join(forms)}")
    return forms[task]


def pack_order(order: Order, form: Form, wire: WireConfig) -> Packet:
    """Return the packet of an order, its updates' channels encoded as `wire.down` says; `read_order` is the inverse.

    Raises `ReplyError` for tensors that cannot travel so.
    """
    head = {key: getattr(order, key) for key in ORDER} | {"arch": order.arch.to_json()}
    assert order.params is not None, "the engine completes a request before it is sent"
    layouts, buffers = {}, {}
    for name, tensors in order.channels.items():
        down, there = _down(wire, form, name), _shapes(tensors)
        payload = down.encode(pack(tensors), there, _seed(order, name, "down"))
        layouts[name], buffers[_buffer(name, down)] = _digest(down, there), _bytes(payload)
    return Packet(json.dumps(head | {"params": told(order.params), "layouts": layouts}), buffers)


def read_order(packet: Packet, forms: Mapping[str, Form], space: SearchSpace, wire: WireConfig) -> Order:
    """Return the order of a packet that the server of the same code made, for an architecture of `space`.

    Raises `ReplyError` if the task is none of `forms`, or the server's space or buffer is another than this one.
    """
    head = json.loads(packet.head)
    form, arch = form_of(forms, head.get("task")), space.arch(head["arch"])
    wanted, channels = form.sends(space, arch), {}
    _same("arrays", sorted(packet.buffers), sorted(_buffer(name, _down(wire, form, name)) for name in wanted))
    for name, there in wanted.items():
        down = _down(wire, form, name)
        if head["layouts"].get(name) != _digest(down, there):
            raise ReplyError(
                f"the search space '{space.name}' of this device lays out the network {arch} in another way than the "
                "server's: give both the same preset file"
            )
        channels[name] = unpack(down.decode(_payload(packet, name, down, there), there), there)
    scalars = {key: scalar(kind, head.get(key), key) for key, kind in ORDER.items()}
    return Order(arch=arch, channels=channels, params=read(form.params, head["params"], "params"), **scalars)


def pack_answer(
    answer: Answer, order: Order, form: Form, wire: WireConfig, residuals: Mapping[str, Tensor] | None = None
) -> Packet:
    """Return the packet of the answer to an order; `read_answer` is the inverse.

    Unless `wire.up` is fp32, channels of updates hold the change of the order's. What `residuals` holds for a channel
    (flat, float32) is added to that change; afterwards it holds what of the sum was not sent. Raises `ReplyError` if
    the answer's channels or tensors are not those that the schema names, or too large to travel.
    """
    head = {key: getattr(answer, key) for key in ANSWER} | {"arch": answer.arch.to_json()}
    layouts, buffers, wanted = {}, {}, form.returns(order)
    _same("channels", sorted(answer.channels), sorted(wanted))
    for name, there in wanted.items():
        up, found = _up(wire, form, name), _shapes(answer.channels[name])
        for tensor in [*there, *found]:
            _same(f"tensor '{tensor}'", found.get(tensor), there.get(tensor))
        flat = pack({tensor: answer.channels[name][tensor] for tensor in there})
        residual = residuals.get(name) if residuals else None
        if up != EXACT:
            flat = flat - pack(order.channels[name])
            if residual is not None:
                flat += residual
        payload = up.encode(flat, there, _seed(order, name, "up"))
        if residual is not None:
            torch.sub(flat, up.decode(payload, there), out=residual)
        layouts[name], buffers[_buffer(name, up)] = _digest(up, there), _bytes(payload)
    return Packet(json.dumps(head | {"result": told(answer.result), "layouts": layouts}), buffers)


def read_answer(packet: Packet, order: Order, form: Form, wire: WireConfig) -> Answer:
    """Return the answer of a packet, which anybody may have made, to `order`.

    A change is added to the order's own tensors. The bytes of both payloads are counted here. Raises `ReplyError`
    naming the client, the field or buffer, what was found and what is allowed, unless the packet names the client,
    round and architecture of the order and its buffers are ones that the wire can make of the task's channels.
    """
    try:
        head = _head(packet.head, HEAD_LIMIT + len(str(order.arch)))
        values = {key: scalar(kind, head.get(key), key) for key, kind in ANSWER.items()}
        for key, wanted in (("client", order.client), ("round", order.round), ("arch", order.arch.to_json())):
            _same(key, head.get(key), wanted)
        result: Result = read(form.result, head.get("result"), "result")
        channels = _channels(head.get("layouts"), packet, order, form, wire)
    except ReplyError as error:
        raise ReplyError(f"client {order.client}: {error}") from None
    down = sum(_down(wire, form, name).size(_shapes(tensors)) for name, tensors in order.channels.items())
    answer = Answer(arch=order.arch, channels=channels, result=result, **values)
    return replace(answer, bytes_down=down, bytes_up=packet.size)


def _channels(layouts: object, packet: Packet, order: Order, form: Form, wire: WireConfig) -> dict[str, Tensors]:
    wanted: Channels = form.returns(order)
    _same("arrays", sorted(packet.buffers), sorted(_buffer(name, _up(wire, form, name)) for name in wanted))
    _same("layouts", layouts, {name: _digest(_up(wire, form, name), there) for name, there in wanted.items()})
    channels = dict[str, Tensors]()
    for name, there in wanted.items():
        up = _up(wire, form, name)
        flat = up.decode(_payload(packet, name, up, there), there)
        channels[name] = unpack(flat if up == EXACT else flat.add_(pack(order.channels[name])), there)
    return channels


def _down(wire: WireConfig, form: Form, channel: str) -> Codec:
    return codec(wire.down, wire.keep) if channel in form.updates else EXACT


def _up(wire: WireConfig, form: Form, channel: str) -> Codec:
    return codec(wire.up, wire.keep) if channel in form.updates else EXACT


def _buffer(channel: str, codec: Codec) -> str:
    return f"{channel}.{codec.name}"


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


def _payload(packet: Packet, channel: str, codec: Codec, there: Shapes) -> Tensor:
    """Return a writable copy of a channel's buffer; raise `ReplyError` before it allocates if the size is wrong."""
    name = _buffer(channel, codec)
    buffer, wanted = packet.buffers[name], codec.size(there)
    if len(buffer) != wanted:
        raise ReplyError(f"array '{name}': found {len(buffer)} bytes, allowed {wanted}")
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


def _seed(order: Order, channel: str, way: str) -> int:
    return derive(order.seed, order.round, order.client, way if channel == WEIGHTS else f"{channel}.{way}")


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


def _same(key: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise ReplyError(f"{key}: found {shown(found)}, allowed {shown(wanted)}")
