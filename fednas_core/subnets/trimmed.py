"""The robust merge: a coordinate-wise trimmed mean over coverage (Yin et al., ICML 2018, algorithm 1, option II)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fednas_core.base.values import Plan, Region, region_shape
from fednas_core.subnets.packing import pack
from fednas_core.subnets.shelf import Shelf

BLOCK = 1 << 18
"""Values, of all replies together, that are sorted at a time: a few megabytes."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """One reply's part of one tensor: its region, its weight, and where its values begin on the shelf."""

    region: Region
    weight: float
    reply: int
    begin: int


class TrimmedMerge:
    """A merge (see `Merging`) that bad values do not move, as long as they are fewer than are left out.

    Of the n_c replies that cover a coordinate, the ``⌊trim·n_c⌋`` smallest values and as many of the largest are left
    out (of equal values all stay, if one does); the others' weighted mean is its new value. Coordinates that nobody
    covers keep theirs. The weights are the method's, as in the plain mean, which this is for `trim` 0; who is left out
    depends on values alone, so that a heavy client is not harder to leave out than a light one. Where fewer than 1/trim
    replies cover a coordinate nobody is left out: there only norm clipping bounds what one of them can do. Replies wait
    on disk: memory does not grow with them.
    """

    def __init__(self, supernet: Mapping[str, Tensor], trim: float) -> None:
        self._supernet, self._trim = supernet, trim
        self._shelf = Shelf(0)
        self._pieces: dict[str, list[_Piece]] = {name: [] for name in supernet}

    def add(self, plan: Plan, tensors: Mapping[str, Tensor], weight: float) -> None:
        """Add one reply that `check_tensors` accepts, with a weight above zero."""
        if not 0 < weight < math.inf:
            raise ValueError(f"weight {weight}: the weight of a reply is a number above zero")
        reply, begin = self._shelf.put(pack({name: tensors[name] for name in plan})), 0
        for name, region in plan.items():
            self._pieces[name].append(_Piece(region, weight, reply, begin))
            begin += math.prod(region_shape(region))

    def finish(self) -> None:
        """Write the trimmed means into the supernet, in place, and be ready for the next round."""
        for name, target in self._supernet.items():
            pieces = self._pieces[name]
            if pieces:
                rows = max(1, BLOCK // (len(pieces) * math.prod(target.shape[1:])))
                for start in range(0, len(target), rows):
                    self._merge_rows(target[start : start + rows], pieces, start)
                pieces.clear()
        self._shelf.clear()

    def _merge_rows(self, target: Tensor, pieces: Sequence[_Piece], start: int) -> None:
        values = target.new_full((len(pieces), *target.shape), math.inf)  # infinity: not covered, sorted to the end
        for of_one, piece in zip(values, pieces, strict=True):
            self._read(of_one, piece, start)
        count = values.isfinite().sum(0)
        cut = (self._trim * count + 1e-9).long()
        ordered = torch.from_numpy(np.sort(values.numpy(), axis=0))  # five to thirty times as fast as torch's
        lowest = ordered.gather(0, cut[None])
        highest = ordered.gather(0, (count - 1 - cut).clamp_(min=0)[None])
        kept = (values >= lowest) & (values <= highest)
        weights = torch.tensor([piece.weight for piece in pieces], dtype=target.dtype)
        total = torch.tensordot(weights, torch.where(kept, values, 0.0), 1)
        torch.where(count > 0, total / torch.tensordot(weights, kept.float(), 1), target, out=target)

    def _read(self, out: Tensor, piece: _Piece, start: int) -> None:
        """Copy what a reply holds of the rows that begin at `start` to its region of `out`."""
        rows, *others = piece.region
        first, last = max(start, rows.start), min(start + len(out), rows.stop)
        if first < last:
            row = math.prod(region_shape(tuple(others)))
            begin = piece.begin + (first - rows.start) * row
            flat = self._shelf.read(piece.reply, begin, begin + (last - first) * row)
            part = out[(slice(first - start, last - start), *others)]
            part.copy_(flat.view(part.shape))
