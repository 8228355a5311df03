from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from contracts.samples import with_result
from torch import Tensor, nn

from fednas_core.base.config import RunConfig
from fednas_core.base.settings import read
from fednas_core.base.values import Arch
from fednas_core.devices.info import ClientInfo
from fednas_core.engine import calibration
from fednas_core.engine.calibration import Recalibrated, recalibrated
from fednas_core.engine.cohort import Crew
from fednas_core.engine.local import LocalFleet
from fednas_core.exchange.orders import Answer, Failure, Order
from fednas_core.exchange.results import Kept
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.moments import MEAN, VARIANCE, norms_of
from fednas_core.subnets.networks import calibrate, network, shapes_of, subnet
from fednas_core.tasks import registry
from fednas_core.tasks.bench import client_images, preprocessing_of, space_of, validation_images
from fednas_core.tasks.moments import MOMENTS

Reply = Answer | Failure
Changing = Callable[[Answer], list[Reply]]

MOBILENET = """
kind = "mobilenet"
stem = 8
image_size = 8
in_channels = 1
shortcuts = "identity"
[[stages]]
widths = [8, 16]
depths = [1, 2]
kernels = [3, 5]
expansions = [2, 3]
[[stages]]
stride = 2
widths = [16, 24]
depths = [1, 2]
kernels = [3, 5]
expansions = [2, 3]
"""


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    """300 digits over ten clients who have from a few of them to dozens."""
    federated = {"space.norm": "batch", "calibrate": "federated", "data.examples": 300, "data.clients": 10}
    federated |= {"calibration-passes": 0}
    return read({**tiny_pairs, **federated, "data.alpha": 0.3})


class Changed(LocalFleet):
    """A fleet whose answers are changed on their way."""

    def __init__(self, config: RunConfig, changing: Changing) -> None:
        super().__init__(config)
        self.changing, self.orders = changing, list[Order]()

    def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Reply]:
        self.orders += orders.values()
        for answer in super().train(orders, more):
            yield from self.changing(answer) if isinstance(answer, Answer) else [answer]


def as_it_is(report: Answer) -> list[Reply]:
    return [report]


def start(config: RunConfig, arch: Arch, seed: int = 1) -> dict[str, Tensor]:
    """A network as the server's validation images calibrate it."""
    space = space_of(config)
    module = subnet(space, arch, initial_weights(space, seed))
    calibrate(module, [preprocessing_of(config)(validation_images(config).x)])
    state = module.state_dict()
    return {name: state[name] for name in shapes_of(space, arch, statistics=True)}


def calibrated(
    config: RunConfig, arch: Arch, changing: Changing = as_it_is, tensors: Mapping[str, Tensor] | None = None
) -> tuple[Recalibrated, Changed]:
    fleet = Changed(config, changing)
    crew = Crew(fleet, config, [space_of(config).smallest], lambda text: None)
    return recalibrated(config, crew, arch, tensors or start(config, arch), "run-7"), fleet


def pooled(config: RunConfig, without: tuple[int, ...] = ()) -> Tensor:
    kept = [index for index in range(config.data.clients) if index not in without]
    return preprocessing_of(config)(torch.cat([client_images(config, index).x for index in kept]))


def centralised(config: RunConfig, arch: Arch, x: Tensor) -> dict[str, Tensor]:
    """Statistics of a plain loop: each norm in turn is given those of its own input, all images in one batch."""
    module = network(space_of(config), arch, start(config, arch)).eval()
    seen: dict[str, Tensor] = {}
    norms = {name: child for name, child in module.named_modules() if isinstance(child, nn.BatchNorm2d)}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(lambda _, inputs, name=name: seen.__setitem__(name, inputs[0].double()))
    with torch.inference_mode():
        for name, norm in norms.items():
            module(x)
            norm.running_mean.copy_(seen[name].mean((0, 2, 3)))
            norm.running_var.copy_(seen[name].var((0, 2, 3), unbiased=False))
    return dict(module.state_dict())


def apart(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Return how far statistics are apart: means as a share of the root mean square, variances of themselves."""
    worst = 0.0
    for norm in norms_of(wanted):
        (m, v), (mean, variance) = ((s[norm + MEAN].double(), s[norm + VARIANCE].double()) for s in (found, wanted))
        steps = ((m - mean).abs() / (mean**2 + variance).sqrt(), (v - variance).abs() / variance)
        worst = max(worst, *(float(step.max()) for step in steps))
    return worst


@pytest.mark.parametrize("which", ["smallest", "largest"])
def test_federated_statistics_are_centralised_ones(config: RunConfig, which: str) -> None:
    """Ten uneven clients, one client who has all images, and a plain loop over those."""
    arch = getattr(space_of(config), which)
    sizes = [len(client_images(config, index).y) for index in range(10)]
    assert max(sizes) > 2 * min(sizes)
    found, _ = calibrated(config, arch)
    assert (found.failures, found.images) == ((), sum(sizes))
    alone = replace(config, data=replace(config.data, clients=1, partition="iid"))
    single, _ = calibrated(alone, arch)
    assert single.images == sum(sizes)
    assert apart(found.tensors, single.tensors) <= 1e-6
    assert apart(found.tensors, centralised(config, arch, pooled(config))) <= 1e-6


def test_so_they_are_in_a_mobile_space(config: RunConfig, tmp_path: Any) -> None:
    (tmp_path / "mobile.toml").write_text(MOBILENET)
    config = replace(config, space=replace(config.space, name=str(tmp_path / "mobile.toml")))
    space = space_of(config)
    arch = space.sample(np.random.default_rng(1))
    found, _ = calibrated(config, arch)
    assert apart(found.tensors, centralised(config, arch, pooled(config))) <= 1e-6


def test_weights_stay_and_only_statistics_change(config: RunConfig) -> None:
    arch = space_of(config).smallest
    before = start(config, arch)
    found, _ = calibrated(config, arch)
    assert list(found.tensors) == list(before)
    for name, tensor in found.tensors.items():
        assert torch.equal(tensor, before[name]) != name.endswith((MEAN, VARIANCE)), name
    module = network(space_of(config), arch, found.tensors)
    assert int(module.get_buffer("stem_norm.num_batches_tracked")) == 0


def test_a_pass_makes_one_more_layer_exact(config: RunConfig) -> None:
    arch = space_of(config).smallest
    wanted = centralised(config, arch, pooled(config))
    layers = ["stem_norm", "stages.0.0.norm1", "stages.0.0.norm2", "stages.1.0.norm1", "stages.1.0.norm2"]

    def exact(tensors: Mapping[str, Tensor]) -> list[bool]:
        parts = [{f"{layer}{kind}": wanted[f"{layer}{kind}"] for kind in (MEAN, VARIANCE)} for layer in layers]
        return [apart(tensors, part) < 1e-6 for part in parts]

    for passes in (1, 2, 3):
        found, fleet = calibrated(replace(config, calibration_passes=passes), arch)
        assert exact(found.tensors) == [True] * passes + [False] * (len(layers) - passes)
        assert found.passes == passes and len(fleet.orders) == 10 * passes
    found, _ = calibrated(config, arch)
    assert all(exact(found.tensors)) and found.passes == len(layers) + 1  # one more finds that nothing changes
    again, _ = calibrated(config, arch, tensors=found.tensors)
    assert again.passes == 1
    assert all(torch.equal(tensor, found.tensors[name]) for name, tensor in again.tensors.items())


def test_where_it_starts_from_does_not_matter_in_the_end(config: RunConfig) -> None:
    arch = space_of(config).smallest
    blank = {
        name: torch.full_like(tensor, 1.0) if name.endswith(VARIANCE) else tensor.clone()
        for name, tensor in start(config, arch).items()
    }
    blank |= {name: torch.zeros_like(tensor) for name, tensor in blank.items() if name.endswith(MEAN)}
    assert apart(calibrated(config, arch, tensors=blank)[0].tensors, calibrated(config, arch)[0].tensors) <= 1e-6


def test_each_pass_leaves_a_small_part_of_the_error(config: RunConfig) -> None:
    arch = space_of(config).largest
    wanted = calibrated(config, arch)[0].tensors
    errors = [apart(start(config, arch), wanted)]
    for passes in (1, 2, 3):
        found, _ = calibrated(replace(config, calibration_passes=passes), arch)
        errors.append(apart(found.tensors, wanted))
    assert all(after < 0.3 * before for before, after in pairwise(errors)), errors


def test_the_servers_images_do_not_matter_in_the_end(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = space_of(config).smallest
    wanted, _ = calibrated(config, arch)
    noise = 3 * torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(calibration, "_guides", lambda config: noise)
    assert apart(calibrated(config, arch)[0].tensors, wanted.tensors) <= 1e-6


def test_orders_hold_the_whole_network_and_every_pass_is_a_round_of_its_own(config: RunConfig) -> None:
    space = space_of(config)
    config = replace(config, calibration_passes=2, client_budgets="30%,max")
    found, fleet = calibrated(config, space.largest)
    names = sorted({order.client for order in fleet.orders})
    assert names == [f"client-{index:02d}" for index in range(1, 10, 2)], "the others have no room for it"
    assert [order.round for order in fleet.orders] == [2] * 5 + [3] * 5
    for order in fleet.orders:
        assert (order.task, order.run, order.budget) == ("moments", "run-7", "max")
        assert list(order.weights) == list(shapes_of(space, space.largest, statistics=True))
    assert found.images == sum(len(client_images(config, index).y) for index in range(1, 10, 2))


def test_a_lossy_wire_carries_them_exactly(config: RunConfig) -> None:
    arch = space_of(config).smallest
    lossy = replace(config, wire=replace(config.wire, down="int8", up="topk"))
    exact, through = calibrated(config, arch)[0], calibrated(lossy, arch)[0]
    assert all(torch.equal(tensor, through.tensors[name]) for name, tensor in exact.tensors.items())


def test_without_batch_norm_nothing_is_asked(config: RunConfig) -> None:
    config = replace(config, space=replace(config.space, norm="group"), calibration_passes=2)
    arch = space_of(config).smallest
    before = start(config, arch)
    found, fleet = calibrated(config, arch)
    assert (found.passes, found.images, found.failures, fleet.orders) == (0, 0, (), []) and list(found.tensors) == list(
        before
    )


# -- answers that are missing or not credible --------------------------------------------------------------------------


def test_missing_answers_are_left_out(config: RunConfig) -> None:
    arch = space_of(config).smallest

    def some(report: Answer) -> list[Reply]:
        gone: dict[str, list[Reply]] = {"client-02": [], "client-05": [Failure("client-05", "disk full")]}
        return gone.get(report.client, [report])

    found, _ = calibrated(config, arch, some)
    assert found.failures == (Failure("client-02", "gave no answer"), Failure("client-05", "disk full"))
    rest = pooled(config, without=(2, 5))
    assert found.images == len(rest)
    assert apart(found.tensors, centralised(config, arch, rest)) <= 1e-6


def test_without_any_answer_the_statistics_stay(config: RunConfig) -> None:
    arch = space_of(config).smallest
    before = start(config, arch)
    found, fleet = calibrated(config, arch, lambda report: [Failure(report.client, "away")])
    assert (found.passes, found.images, len(found.failures)) == (0, 0, 10) and len(fleet.orders) == 10
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.tensors.items())


def lie(name: str, change: Callable[[Tensor], Tensor], **result: Any) -> Changing:
    """Client 3 sends another tensor of that name, or another result."""

    def changing(report: Answer) -> list[Reply]:
        if report.client != "client-03":
            return [report]
        sent = report.channels[MOMENTS]
        tensors = {**sent, name: change(sent[name].clone())} if name else sent
        return [replace(with_result(report, **result), channels={MOMENTS: tensors})]

    return changing


def filled(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.full_like(tensor, value)


@pytest.mark.parametrize(
    ("changing", "reason"),
    [
        (lie("stem_norm.sum", filled(float("nan"))), "tensor 'stem_norm.sum': found values that are not finite"),
        (lie("stem_norm.squares", filled(float("inf"))), "'stem_norm.squares': found values that are not finite"),
        (lie("stages.1.0.norm2.squares", filled(-1.0)), "found a sum of squares of -2, allowed 0 and more"),
        (lie("stem_norm.squares", filled(3.4e38)), r"found a sum of squares of 6.8e\+38, allowed up to 3.4e\+38"),
        (lie("stem_norm.sum", filled(1e6)), "found sums larger than their sums of squares permit"),
        (lie("stem_norm.squares", filled(1e30)), r"times the cohort's median, allowed is up to 100 times"),
        (lie("stem_norm.sum", lambda tensor: tensor[:, :3]), r"'stem_norm.sum': found shape \(2, 3\), allowed shape"),
        (lie("", filled(0), images=10**6), r"images: found 1000000, allowed 1 to the \d+ that it said it has"),
        (lie("", filled(0), images=0), "images: found 0, allowed"),
        (lambda r: [replace(r, round=0)] if r.client == "client-03" else [r], "another architecture or round"),
        (lambda r: [replace(r, result=Kept())] if r.client == "client-03" else [r], "found a result of Kept"),
    ],
)  # fmt: skip
def test_an_answer_that_no_images_can_make_is_refused(config: RunConfig, changing: Changing, reason: str) -> None:
    arch = space_of(config).smallest
    config = replace(config, calibration_passes=2)
    found, _ = calibrated(config, arch, changing)
    (failure,) = found.failures
    assert failure.client == "client-03" and re.search(reason, failure.reason), failure.reason
    wanted, _ = calibrated(config, arch, lambda report: [report] if report.client != "client-03" else [])
    assert all(torch.equal(tensor, wanted.tensors[name]) for name, tensor in found.tensors.items())


def test_strangers_and_second_answers_are_passed_over(config: RunConfig) -> None:
    arch = space_of(config).smallest
    config = replace(config, calibration_passes=1)

    def odd(report: Answer) -> list[Reply]:
        twice = replace(report, channels={MOMENTS: {n: t * 3 for n, t in report.channels[MOMENTS].items()}})
        return [replace(twice, client="nobody"), report, twice, Failure(report.client, "late")]

    found, _ = calibrated(config, arch, odd)
    assert found.failures == () and found.passes == 1
    assert apart(found.tensors, calibrated(config, arch)[0].tensors) == 0


def test_the_order_of_answers_does_not_matter(config: RunConfig) -> None:
    arch = space_of(config).smallest

    class Backwards(LocalFleet):
        def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Reply]:
            yield from reversed(list(super().train(orders, more)))

    crew = Crew(Backwards(config), config, [arch], lambda text: None)
    found = recalibrated(config, crew, arch, start(config, arch), "run-7")
    wanted, _ = calibrated(config, arch)
    assert all(torch.equal(tensor, wanted.tensors[name]) for name, tensor in found.tensors.items())


def test_a_client_is_believed_no_more_images_than_it_trains_on(config: RunConfig) -> None:
    config = replace(config, data=replace(config.data, holdout=0.25), calibration_passes=1)
    found, _ = calibrated(config, space_of(config).smallest)
    infos: list[ClientInfo] = registry.clients_of(config)
    assert found.failures == () and found.images == sum(info.examples for info in infos)
