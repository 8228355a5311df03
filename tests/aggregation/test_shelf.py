from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from fednas_core.base.errors import RunError
from fednas_core.subnets.shelf import Shelf


def flat(values: int, seed: int) -> torch.Tensor:
    return torch.randn(values, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("room", [0, 4 * 25, 10**6])
def test_what_was_put_is_read_whole_and_in_parts(room: int) -> None:
    shelf = Shelf(room)
    there = [flat(10 + 7 * i, i) for i in range(6)]
    numbers = [shelf.put(tensor) for tensor in there]
    for number, tensor in zip(reversed(numbers), reversed(there), strict=True):
        assert torch.equal(shelf.read(number), tensor)
        assert torch.equal(shelf.read(number, 3), tensor[3:])
        assert torch.equal(shelf.read(number, 2, 9), tensor[2:9])
        assert shelf.read(number, 4, 4).numel() == 0
        buffer = torch.zeros(100)
        assert torch.equal(shelf.read(number, 2, 9, out=buffer), tensor[2:9]) and torch.equal(buffer[:7], tensor[2:9])
    shelf.clear()


def test_memory_is_used_as_far_as_it_goes_and_again_when_it_is_given_back() -> None:
    shelf = Shelf(4 * 20)
    first, second, third = (shelf.put(flat(10, i)) for i in range(3))
    assert set(shelf._memory) == {first, second}
    shelf.drop(first)
    shelf.drop(third)
    fourth = shelf.put(flat(10, 9))
    assert set(shelf._memory) == {second, fourth}
    assert torch.equal(shelf.read(third), flat(10, 2))
    shelf.clear()
    assert not shelf._memory and shelf._room == 80 and shelf._file is None


def test_a_cleared_shelf_can_be_used_again() -> None:
    shelf = Shelf(0)
    for seed in (1, 2):
        number = shelf.put(flat(5, seed))
        assert number == 0 and torch.equal(shelf.read(number), flat(5, seed))
        shelf.clear()


def test_reading_gives_a_copy() -> None:
    for shelf in (Shelf(0), Shelf(1000)):
        number = shelf.put(flat(5, 1))
        shelf.read(number).fill_(3.0)
        assert torch.equal(shelf.read(number), flat(5, 1))
        shelf.clear()


def test_a_full_disk_is_said_with_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Full:
        def __getattr__(self, name: str) -> Any:
            return lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda prefix: Full())
    with pytest.raises(RunError, match=r"could not be written there \(.*No space left.*\): make room.*TMPDIR"):
        Shelf(0).put(flat(5, 1))
