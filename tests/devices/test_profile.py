from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from fednas_core.devices.profile import available_cores, available_memory_mb, native_bf16, profile
from fednas_core.spaces.resnet import ResNetSpace

SPACE = ResNetSpace("tiny", 8, (8, 16), (1, 2), (1.0, 2.0), (0.5, 1.0), 1, image_size=8, in_channels=1)


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_profile_of_this_machine(norm: str) -> None:
    space = ResNetSpace("tiny", 8, (8, 16), (1, 2), (1.0, 2.0), (0.5, 1.0), 1, image_size=8, norm=norm)  # type: ignore[arg-type]
    found = profile(space)
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.memory_mb > 10
    assert found.precision == ("bf16" if native_bf16() else "fp32")
    assert 1e6 < found.macs_per_second < 1e14
    assert 0 < found.latency_ms < 1000


def test_profile_draws_no_random_numbers_and_leaves_the_threads() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    profile(SPACE)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_profile_is_short() -> None:
    profile(SPACE)
    start = time.process_time()
    profile(SPACE)
    assert time.process_time() - start < 2.0


def test_bf16_is_a_matter_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert native_bf16() is False
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert native_bf16() is True
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert native_bf16() is False, "a torch without these checks"


def test_bf16_of_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert native_bf16("cuda") is False


def test_cores_where_there_is_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


def test_memory_is_read_from_meminfo(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable:    1000000 kB\n")
    assert available_memory_mb(tmp_path / "meminfo") == 1024


def test_memory_without_meminfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_memory_mb(tmp_path / "absent") > 10
    monkeypatch.delattr(os, "sysconf")
    assert available_memory_mb(tmp_path / "absent") == 0
