from __future__ import annotations

import json
import math
import os
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas_core.devices import containers
from fednas_core.devices import profile as profiles
from fednas_core.devices.containers import available_cores
from fednas_core.devices.info import Probe, Profile
from fednas_core.devices.profile import (
    available_memory,
    from_json,
    native_bf16,
    profile,
    to_json,
)
from fednas_core.spaces.resnet import ResNetSpace

SPACE = ResNetSpace("tiny", 8, (8, 16), (1, 2), (1.0, 2.0), (0.5, 1.0), 1, image_size=8, in_channels=1)


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_profile_of_this_machine(norm: str) -> None:
    space = ResNetSpace("tiny", 8, (8, 16), (1, 2), (1.0, 2.0), (0.5, 1.0), 1, image_size=8, norm=norm)  # type: ignore[arg-type]
    found = profile(space)
    assert 1 <= found.cores <= len(os.sched_getaffinity(0))
    assert found.memory_mb is not None and found.memory_mb > 10
    assert found.precision == ("bf16" if native_bf16() else "fp32")
    assert 1e6 < found.macs_per_second < 1e14
    assert 0 < found.latency_ms < 1000
    assert (found.threads, found.device) == (1, "cpu")
    assert {probe.arch: probe.median_ms for probe in found.probes}[space.largest] == found.latency_ms


def test_profile_draws_no_random_numbers_and_leaves_the_threads() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    profile(SPACE)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_profile_computes_with_the_threads_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr(profiles, "_macs_per_second", lambda *_: used.append(torch.get_num_threads()) or 1e9)
    monkeypatch.setattr(
        profiles, "measure_probes", lambda *_: used.append(torch.get_num_threads()) or (replace(PROBE, threads=2),)
    )
    before = torch.get_num_threads()
    assert profile(SPACE, threads=before + 1).threads == before + 1
    assert used == [before + 1] * 2 and torch.get_num_threads() == before


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


def test_a_container_has_the_cores_and_the_memory_of_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "granted_cores", lambda: 1)
    monkeypatch.setattr(profiles, "granted_memory", lambda: 12_900_000)
    assert (available_cores(), available_memory()) == (1, 12_900_000)
    monkeypatch.setattr(containers, "granted_cores", lambda: 10**6)
    assert available_cores() == len(os.sched_getaffinity(0))


@pytest.fixture
def _no_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "granted_memory", lambda: None)


@pytest.mark.usefixtures("_no_container")
def test_memory_is_read_from_meminfo(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable:    1000000 kB\n")
    assert available_memory(tmp_path / "meminfo") == 1_024_000_000


@pytest.mark.usefixtures("_no_container")
def test_memory_without_meminfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = available_memory(tmp_path / "absent")
    assert free is not None and free > 10_000_000
    monkeypatch.delattr(os, "sysconf")
    assert available_memory(tmp_path / "absent") is None


PROBE = Probe(SPACE.largest, 2.0, 1.5, 3.0, 21, 1, 1, "2.14.1+cpu")
FOUND = Profile(4, 2000, "bf16", 1e9, 2.0, 1, "cuda (NVIDIA H200)", (PROBE, replace(PROBE, arch=SPACE.smallest)))


def test_a_profile_survives_the_wire() -> None:
    assert from_json(SPACE, json.loads(json.dumps(to_json(FOUND)))) == FOUND
    assert from_json(SPACE, to_json(replace(FOUND, probes=()))).probes == ()
    assert [from_json(SPACE, to_json(replace(FOUND, memory_mb=mb))).memory_mb for mb in (0, None)] == [0, None]


ABSURD = [None, "", "1", -1, 0, True, 1e300, 10**400, math.nan, math.inf, [], {}, [1], "x" * 101, "a\x1b[31m"]
FINE = [(key, text) for key in ("device", "precision", "torch") for text in ("", "1")]


@pytest.mark.parametrize("key", [field.name for field in fields(Profile)])
@pytest.mark.parametrize("value", ABSURD, ids=lambda value: str(value)[:12] or "empty")
def test_an_implausible_profile_is_refused(key: str, value: Any) -> None:
    if (key, value) in [("memory_mb", 0), ("memory_mb", None), ("probes", []), *FINE]:
        return
    with pytest.raises((ValueError, KeyError, TypeError)):
        from_json(SPACE, to_json(FOUND) | {key: value})


@pytest.mark.parametrize("key", [field.name for field in fields(Probe)])
@pytest.mark.parametrize("value", ABSURD, ids=lambda value: str(value)[:12] or "empty")
def test_an_implausible_probe_is_refused(key: str, value: Any) -> None:
    if (key, value) in FINE:
        return
    told = to_json(FOUND)
    told["probes"][1][key] = value
    with pytest.raises((ValueError, KeyError, TypeError)):
        from_json(SPACE, told)


@pytest.mark.parametrize("key", [field.name for field in (*fields(Profile), *fields(Probe))])
def test_what_is_missing_is_refused(key: str) -> None:
    told = to_json(FOUND)
    for part in (told, told["probes"][0]):
        part.pop(key, None)
        if "probes" not in told:
            break
    with pytest.raises((ValueError, KeyError, TypeError)):
        from_json(SPACE, told)


def test_percentiles_out_of_order_and_genes_out_of_range_are_refused() -> None:
    for change in ({"p10_ms": 2.5}, {"p90_ms": 1.9}, {"arch": {"d": [9, 0], "e": [0.5] * 4, "w": [0, 0, 0]}}):
        told = to_json(FOUND)
        told["probes"][0] |= change
        with pytest.raises(ValueError, match="probe"):
            from_json(SPACE, told)
    told = to_json(FOUND)
    told["probes"][0]["arch"]["e"][0] = 10**400
    with pytest.raises(ValueError, match="architecture"):
        from_json(SPACE, told)


def test_too_many_probes_are_refused_before_they_are_read() -> None:
    told = to_json(FOUND)
    with pytest.raises(ValueError, match="at most 200"):
        from_json(SPACE, told | {"probes": [None] * 201})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*to_json(FOUND), "arch"]), inner),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(list(to_json(FOUND))), json_values, min_size=1))
def test_no_json_does_anything_but_pass_or_be_refused(changes: dict[str, Any]) -> None:
    try:
        found = from_json(SPACE, to_json(FOUND) | changes)
    except (ValueError, KeyError, TypeError):
        return
    assert from_json(SPACE, to_json(found)) == found
