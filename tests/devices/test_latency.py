from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from fednas_core.devices.latency import device_name, measure, passes, percentiles, synchronize


class Sleeper(nn.Module):
    """Takes `seconds` a pass and records how it was called."""

    calls: list[tuple[tuple[int, ...], bool, bool, int]] = []

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        how = (tuple(x.shape), torch.is_inference_mode_enabled(), self.training, torch.get_num_threads())
        Sleeper.calls.append(how)
        time.sleep(self.seconds)
        return x


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    Sleeper.calls = []


def test_a_known_delay_is_measured() -> None:
    latency = measure(Sleeper(0.004), (3, 8, 8), repeats=9, warmup=1)
    assert 4.0 <= latency.p10_ms <= latency.median_ms <= latency.p90_ms < 100
    assert (latency.repeats, latency.batch, latency.threads, latency.device) == (9, 1, 1, "cpu")
    assert latency.torch == torch.__version__
    assert latency.to_json()["median_ms"] == latency.median_ms


def test_one_image_in_inference_mode_on_one_thread() -> None:
    measure(Sleeper(0), (3, 8, 6), repeats=4, warmup=2)
    assert Sleeper.calls == [((1, 3, 8, 6), True, False, 1)] * 6


def test_module_and_thread_count_stay_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        module = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))
        module[1].eval()
        mean = module[0].running_mean.clone()
        measure(module, (3, 4, 4), repeats=2, warmup=1)
        assert torch.get_num_threads() == 2
        assert (module.training, module[0].training, module[1].training) == (True, True, False)
        assert torch.equal(module[0].running_mean, mean)
    finally:
        torch.set_num_threads(before)


def test_thread_count_is_restored_when_the_network_fails() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        measure(nn.Linear(3, 2), (3, 8, 5), threads=before + 1)
    assert torch.get_num_threads() == before


def test_total_time_is_bounded_but_one_pass_is_timed() -> None:
    start = time.perf_counter()
    latency = measure(Sleeper(0.02), (1, 2, 2), repeats=10_000, warmup=10_000, limit_s=0.05)
    assert time.perf_counter() - start < 1.0
    assert latency.repeats == 1


def test_the_cpu_has_a_plain_name_and_needs_no_waiting() -> None:
    cpu = torch.device("cpu")
    synchronize(cpu)
    assert device_name(cpu) == "cpu"


def test_passes_are_timed_one_by_one_as_they_come() -> None:
    found = passes(Sleeper(0.002), torch.zeros(1, 3, 8, 8), 4)
    assert len(found) == len(Sleeper.calls) == 4 and all(2.0 <= ms < 100 for ms in found)
    assert Sleeper.calls[0][1] is True, "in inference mode"


@pytest.mark.parametrize(
    ("times", "wanted"),
    [([3.0], (3.0, 3.0, 3.0)), ([4.0, 2.0], (3.0, 2.0, 4.0)), (list(range(21)), (10, 2, 18))],
)
def test_percentiles_of_any_order(times: list[float], wanted: tuple[float, float, float]) -> None:
    assert percentiles(times) == percentiles(times[::-1]) == wanted
