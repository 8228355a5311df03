"""Where replies lie until they are needed: a little memory, then one temporary file, however many they are."""

from __future__ import annotations

import tempfile
from typing import BinaryIO

import torch
from torch import Tensor

from fednas_core.base.errors import RunError


class Shelf:
    """Flat float32 tensors set aside: in memory as long as they fit in `room` bytes, the rest on disk.

    The file lies in the system's temporary folder (TMPDIR), has no name and goes with the process, however that ends.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._memory: dict[int, Tensor] = {}
        self._places: list[tuple[int, int]] = []  # of each tensor: where it begins in the file, its number of values
        self._end = 0
        self._file: BinaryIO | None = None

    def put(self, flat: Tensor) -> int:
        """Keep a copy of a flat tensor and return its number; raise `RunError` if the disk does not take it."""
        number, size = len(self._places), flat.numel() * flat.element_size()
        self._places.append((self._end, flat.numel()))
        if size <= self._room:
            self._room -= size
            self._memory[number] = flat.clone()
        else:
            self._write(flat)
            self._end += size
        return number

    def read(self, number: int, start: int = 0, stop: int | None = None, out: Tensor | None = None) -> Tensor:
        """Return values `start` to `stop` of a tensor, in memory of their own or at the front of `out`."""
        begin, values = self._places[number]
        size = (values if stop is None else stop) - start
        found = torch.empty(size) if out is None else out[:size]
        if number in self._memory:
            found.copy_(self._memory[number][start : start + size])
        elif self._file is not None and size:
            self._file.seek(begin + 4 * start)
            self._file.readinto(found.numpy().data.cast("B"))  # type: ignore[attr-defined]
        return found

    def drop(self, number: int) -> None:
        """Forget a tensor; its memory, though not its place on disk, can be used again."""
        if number in self._memory:
            flat = self._memory.pop(number)
            self._room += flat.numel() * flat.element_size()

    def clear(self) -> None:
        """Forget all tensors and give memory and disk back."""
        for number in list(self._memory):
            self.drop(number)
        self._places.clear()
        self._end = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, flat: Tensor) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="fednas-")  # noqa: SIM115 (open until `clear`)
            self._file.seek(self._end)
            self._file.write(flat.detach().contiguous().numpy().data.cast("B"))
            self._file.flush()
        except OSError as error:
            raise RunError(
                f"replies wait in {tempfile.tempdir or 'a temporary folder'} until their round is over, and one could "
                f"not be written there ({error}): make room, or name another folder in TMPDIR; the rounds before are "
                "safe, resume the run"
            ) from error
