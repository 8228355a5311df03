"""Fewer bytes: how the values of a flat tensor become the payload of a message and come back.

A codec's payload has a size that follows from the shapes alone, so whoever decodes can check it before anything is
allocated. Payloads come from anybody: decoding refuses what no encoder makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fednas_core.base.errors import ReplyError

Shapes = Mapping[str, tuple[int, ...]]
"""The tensors that lie one after the other in a flat one."""

STEPS = 126
"""int8 divides a channel's range into steps of 1/126 of its largest value; the last of 127 absorbs the rounding of the
scale to bfloat16."""


class Codec(Protocol):
    """A way to write float32 values."""

    @property
    def name(self) -> str:
        """The name of the payload on the wire."""
        ...

    def size(self, shapes: Shapes) -> int:
        """Return the exact size of the payload in bytes."""
        ...

    def encode(self, flat: Tensor, shapes: Shapes, seed: int) -> Tensor:
        """Return the payload (uint8, flat) of a flat float32 tensor; raise `ReplyError` for values it cannot hold."""
        ...

    def decode(self, payload: Tensor, shapes: Shapes) -> Tensor:
        """Return the values (float32, flat) of a payload of the right size; raise `ReplyError` for a forged one.

        Values may still be infinite or not a number.
        """
        ...


@dataclass(frozen=True, slots=True)
class Cast:
    """Every value in a float type: float32 (lossless), float16 or bfloat16, rounded to the nearest."""

    dtype: torch.dtype

    @property
    def name(self) -> str:
        """See `Codec.name`."""
        return str(self.dtype).removeprefix("torch.")

    def size(self, shapes: Shapes) -> int:
        """See `Codec.size`."""
        return count(shapes) * self.dtype.itemsize

    def encode(self, flat: Tensor, shapes: Shapes, seed: int) -> Tensor:
        """See `Codec.encode`; float32 passes everything on as it is."""
        values = flat.to(self.dtype)
        if self.dtype != torch.float32 and not bool(torch.isfinite(values).all()):
            _refuse_values(self.name, f"finite values up to {torch.finfo(self.dtype).max:.3g}")
        return values.view(torch.uint8)

    def decode(self, payload: Tensor, shapes: Shapes) -> Tensor:
        """See `Codec.decode`."""
        return payload.view(self.dtype).to(torch.float32)


@dataclass(frozen=True, slots=True)
class Int8:
    """Eight bits a value: a step for each channel (first dimension), whole numbers of steps, rounded stochastically.

    Unbiased: a value between two steps becomes either, the nearer one more often (QSGD, Alistarh et al., 2017). A
    tensor of one dimension is one channel. Payload: the steps in bfloat16, which has float32's range for changes that
    shrink with the learning rate, then the numbers.
    """

    name: str = "int8"

    def size(self, shapes: Shapes) -> int:
        """See `Codec.size`."""
        return 2 * _channels(shapes) + count(shapes)

    def encode(self, flat: Tensor, shapes: Shapes, seed: int) -> Tensor:
        """See `Codec.encode`; `seed` decides which way values are rounded."""
        rng = np.random.default_rng(seed)
        payload = torch.empty(self.size(shapes), dtype=torch.uint8)
        steps, numbers = self._parts(payload, shapes)
        for values, step, number in zip(_rows(flat, shapes), steps, _rows(numbers, shapes), strict=True):
            step.copy_(torch.linalg.vector_norm(values, ord=torch.inf, dim=1) / STEPS)
            if not bool(torch.isfinite(step).all()):
                _refuse_values(self.name, "finite values")
            divisor = torch.where(step == 0, 1.0, step.float())[:, None]
            noise = torch.from_numpy(rng.random(values.shape, dtype=np.float32))
            number.copy_(noise.add_(values / divisor).floor_().clamp_(-127, 127))
        return payload

    def decode(self, payload: Tensor, shapes: Shapes) -> Tensor:
        """See `Codec.decode`; steps must be finite and not below zero."""
        steps, numbers = self._parts(payload, shapes)
        every = payload[: 2 * _channels(shapes)].view(torch.bfloat16)
        if not bool((torch.isfinite(every) & (every >= 0)).all()):
            raise ReplyError("int8: found a step that is negative or not finite, allowed finite steps from 0")
        flat = torch.empty(count(shapes))
        for values, step, number in zip(_rows(flat, shapes), steps, _rows(numbers, shapes), strict=True):
            torch.mul(number, step.float()[:, None], out=values)
        return flat

    def _parts(self, payload: Tensor, shapes: Shapes) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the steps of each tensor and the numbers of all, as views of the payload."""
        end = 2 * _channels(shapes)
        steps = payload[:end].view(torch.bfloat16)
        return torch.split(steps, [_channels_of(shape) for shape in shapes.values()]), payload[end:].view(torch.int8)


@dataclass(frozen=True, slots=True)
class TopK:
    """The share `keep` (0 to 1) of the entries that are largest in size, over all tensors together; the rest are zero.

    One threshold for all tensors sends what moves the network most. It needs error feedback (Seide et al., 2014;
    Karimireddy et al., 2019), with which entries below the threshold are not lost but grow until they pass it. Payload:
    where they are, ascending int32 or a bitmap, whichever is smaller, then the values in float16.
    """

    keep: float
    name: str = "topk"

    def size(self, shapes: Shapes) -> int:
        """See `Codec.size`."""
        total = count(shapes)
        return self._place_bytes(total) + 2 * self._kept(total)

    def encode(self, flat: Tensor, shapes: Shapes, seed: int) -> Tensor:
        """See `Codec.encode`; of entries of equal size the first are sent."""
        values, total = flat.numpy(), flat.numel()
        kept = self._kept(total)
        sizes = np.abs(values)
        threshold = np.partition(sizes, total - kept)[total - kept]
        chosen = sizes > threshold
        chosen[np.flatnonzero(sizes == threshold)[: kept - int(chosen.sum())]] = True
        with np.errstate(over="ignore"):
            sent = values[chosen].astype(np.float16)
        if not bool(np.isfinite(sent).all() and np.isfinite(sizes).all()):
            _refuse_values(self.name, f"finite values up to {torch.finfo(torch.float16).max:.3g}")
        if self._as_bitmap(total):
            places = np.zeros(self._place_bytes(total), dtype=np.uint8)
            bits = np.packbits(chosen, bitorder="little")
            places[: len(bits)] = bits
        else:
            places = np.flatnonzero(chosen).astype(np.int32).view(np.uint8)
        return torch.from_numpy(np.concatenate([places, sent.view(np.uint8)]))

    def decode(self, payload: Tensor, shapes: Shapes) -> Tensor:
        """See `Codec.decode`; each entry must be named once and in order, and every value be finite."""
        total, data = count(shapes), payload.numpy()
        end, kept = self._place_bytes(total), self._kept(total)
        values = data[end:].view(np.float16)
        if not bool(np.isfinite(values).all()):
            raise ReplyError("topk: found values that are not finite, allowed finite values")
        flat = torch.zeros(total)
        if self._as_bitmap(total):
            bits = np.unpackbits(data[:end], bitorder="little").view(bool)
            if int(bits.sum()) != kept or bool(bits[total:].any()):
                raise ReplyError(f"topk: found {int(bits.sum())} entries, allowed {kept} of {total}")
            flat.numpy()[bits[:total]] = values
        else:
            places = data[:end].view(np.int32)
            if places[0] < 0 or places[-1] >= total or bool((places[1:] <= places[:-1]).any()):
                raise ReplyError(f"topk: found entries out of range or order, allowed 0 to {total - 1}, ascending")
            flat.numpy()[places] = values
        return flat

    def _kept(self, total: int) -> int:
        return max(1, round(self.keep * total))

    def _as_bitmap(self, total: int) -> bool:
        return 8 * ceil(total / 64) < 4 * self._kept(total)

    def _place_bytes(self, total: int) -> int:
        return 8 * ceil(total / 64) if self._as_bitmap(total) else 4 * self._kept(total)


EXACT = Cast(torch.float32)
"""The codec that loses nothing."""


def codec(name: str, keep: float) -> Codec:
    """Return the codec of a setting ``wire.down`` or ``wire.up``; `keep` is for topk."""
    known: dict[str, Codec] = {
        "fp32": EXACT,
        "fp16": Cast(torch.float16),
        "bf16": Cast(torch.bfloat16),
        "int8": Int8(),
        "topk": TopK(keep),
    }
    return known[name]


def count(shapes: Shapes) -> int:
    """Return the number of values of all tensors."""
    return sum(map(prod, shapes.values()))


def _channels_of(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) > 1 else 1


def _channels(shapes: Shapes) -> int:
    return sum(map(_channels_of, shapes.values()))


def _rows(flat: Tensor, shapes: Shapes) -> Iterator[Tensor]:
    """Yield each tensor as a matrix with a row for each channel: a view of `flat`."""
    parts = torch.split(flat, [prod(shape) for shape in shapes.values()])
    for part, shape in zip(parts, shapes.values(), strict=True):
        yield part.view(_channels_of(shape), -1)


def _refuse_values(name: str, allowed: str) -> None:
    raise ReplyError(f"{name}: found values too large or not finite, allowed {allowed}: training has diverged")
