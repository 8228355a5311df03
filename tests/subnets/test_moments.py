from __future__ import annotations

import pytest
import torch
from contracts.samples import toy_space
from torch import Tensor, nn

from fednas_core.base.errors import ReplyError
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.moments import (
    MEAN,
    SQUARES,
    SUM,
    VARIANCE,
    check_moments,
    distance,
    foreseen,
    moment_shapes,
    moments,
    norms_of,
    statistics,
    whole,
)
from fednas_core.subnets.networks import calibrate, shapes_of, subnet


def images(n: int, seed: int = 1) -> Tensor:
    return 2.0 + 3.0 * torch.randn(n, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def network(seed: int = 3) -> nn.Module:
    space = toy_space(norm="batch")
    module = subnet(space, space.largest, initial_weights(space, seed))
    calibrate(module, [images(16, seed=9)])
    return module


def one_norm(mean: float, channels: int = 3) -> nn.Module:
    norm = nn.BatchNorm2d(channels)
    norm.running_mean.fill_(mean)
    return nn.Sequential(norm)


def test_names_and_shapes_are_those_of_every_norm() -> None:
    space = toy_space(norm="batch")
    model = shapes_of(space, space.smallest, statistics=True)
    shapes = moment_shapes(model)
    assert shapes["stem_norm.sum"] == shapes["stem_norm.squares"] == (2, 8)
    assert len(shapes) == 2 * len(norms_of(model)) == 2 * 7
    assert moment_shapes(shapes_of(space, space.smallest, statistics=False)) == {}
    found, count = moments(subnet(space, space.smallest, initial_weights(space, 1)), [images(4), images(3)])
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == shapes and count == 7
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


def test_an_images_share_is_the_mean_over_its_positions_about_the_mean_that_was_sent() -> None:
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]], [[[0.0, 0.0], [0.0, 8.0]]]])
    found, count = moments(one_norm(2.0, channels=1), [x])
    assert count == 2
    assert whole(found["0.sum"]).tolist() == [(4 - 2) + (2 - 2)]
    assert whole(found["0.squares"]).tolist() == [(1 + 1 + 9 + 25) / 4 + (4 + 4 + 4 + 36) / 4]
    after = statistics({"0.running_mean": torch.tensor([2.0])}, [(found, count)])
    assert after["0.running_mean"].tolist() == [3.0]
    assert after["0.running_var"].tolist() == [pytest.approx(float(x.var(unbiased=False)), rel=1e-7)]


def test_parts_make_the_statistics_of_the_whole() -> None:
    module, x = network(), images(50)
    before = dict(module.state_dict())
    together = statistics(before, [moments(module, [x])])
    parts = statistics(before, [moments(module, x[a:b].split(4)) for a, b in ((0, 3), (3, 40), (40, 50))])
    assert set(together) == {f"{norm}{kind}" for norm in norms_of(before) for kind in (MEAN, VARIANCE)}
    for name, tensor in together.items():
        torch.testing.assert_close(parts[name], tensor, rtol=2e-7, atol=1e-7)


def test_neither_the_order_of_images_nor_the_size_of_batches_matters() -> None:
    module, x = network(), images(33)
    shuffled = x[torch.randperm(33, generator=torch.Generator().manual_seed(0))]
    wanted, _ = moments(module, [x])
    for batches in (x.split(1), x.split(5), shuffled.split(8), [shuffled]):
        found, count = moments(module, batches)
        assert count == 33
        for name, tensor in wanted.items():
            torch.testing.assert_close(whole(found[name]), whole(tensor), rtol=1e-6, atol=1e-5)


def test_a_mean_that_is_large_against_the_deviation_costs_no_digits() -> None:
    """Plain sums of x and x² in float32 have none left here: the mean is 10,000 times the deviation."""
    x = 1000.0 + 0.1 * torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    module, true = one_norm(999.9), x.double().transpose(0, 1).flatten(1)
    before = {f"0{MEAN}": module.get_buffer("0.running_mean")}
    after = statistics(before, [moments(module, part.split(7)) for part in (x[:11], x[11:])])
    torch.testing.assert_close(after[f"0{MEAN}"], true.mean(1).float(), rtol=6e-8, atol=0)
    torch.testing.assert_close(after[f"0{VARIANCE}"].double(), true.var(1, unbiased=False), rtol=1e-6, atol=0)


def test_both_parts_together_have_the_precision_of_48_bits() -> None:
    x = torch.rand(9, 3, 5, 5, generator=torch.Generator().manual_seed(4))
    found, _ = moments(one_norm(0.25), [x])
    true = (x.double() - 0.25).mean((2, 3)).sum(0)
    torch.testing.assert_close(whole(found[f"0{SUM}"]), true, rtol=1e-13, atol=0)
    assert (found[f"0{SUM}"][1] != 0).any()


def test_a_constant_channel_has_no_variance_and_never_a_negative_one() -> None:
    x = torch.full((5, 3, 4, 4), 0.1)
    module = one_norm(0.0)
    after = statistics({f"0{MEAN}": torch.zeros(3)}, [moments(module, [x])])
    assert (after[f"0{VARIANCE}"] >= 0).all() and (after[f"0{VARIANCE}"] < 1e-15).all()


def test_nothing_of_the_network_changes_and_no_hook_stays() -> None:
    module = network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    moments(module.train(), [images(4)])
    assert not module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    with pytest.raises(RuntimeError):
        moments(module, [images(4)[:, :1]])
    assert not any(child._forward_pre_hooks for child in module.modules())


def test_a_network_without_batch_norm_has_no_moments() -> None:
    space = toy_space()
    found, count = moments(subnet(space, space.smallest, initial_weights(space, 1)), [images(4)])
    assert found == {} and count == 4 and statistics({}, [(found, count)]) == {}
    assert f"a{SQUARES}" not in found


# -- what no images can have made --------------------------------------------------------------------------------------


def test_the_moments_of_images_are_credible_for_their_number() -> None:
    module = network()
    for count in (1, 2, 17):
        found, images_ = moments(module, [images(count)])
        check_moments(found, images_)
    check_moments(moments(one_norm(0.0), [torch.full((5, 3, 4, 4), 0.1)])[0], 5)  # no deviation: S² is n·Q


@pytest.mark.parametrize(
    ("name", "factor", "told"),
    [
        (
            f"stages.0.0.norm1{SQUARES}",
            -1.0,
            r"'stages\.0\.0\.norm1': found a sum of squares of -.*, allowed 0 and more",
        ),
        (f"stem_norm{SQUARES}", 1e-6, "moments of 'stem_norm': found sums larger than their sums of squares permit"),
        (f"stem_norm{SUM}", 1e3, "moments of 'stem_norm': found sums larger than .* allowed what images make"),
    ],
)
def test_moments_that_no_images_make_are_refused_by_norm(name: str, factor: float, told: str) -> None:
    found, count = moments(network(), [images(12)])
    with pytest.raises(ReplyError, match=told):
        check_moments({**found, name: found[name] * factor}, count)


def test_moments_of_more_images_than_are_told_are_refused() -> None:
    """Of n equal images S² is n·Q, so that fewer than n cannot have made them."""
    found, count = moments(one_norm(0.0), [torch.full((6, 3, 4, 4), 2.0)])
    check_moments(found, count)
    with pytest.raises(ReplyError, match="moments of '0': found sums larger than their sums of squares permit"):
        check_moments(found, count - 1)


def test_the_distance_is_in_standard_deviations_from_the_means_that_were_sent() -> None:
    module = one_norm(2.0)
    module.get_buffer("0.running_var").fill_(4.0)
    sent = dict(module.state_dict())
    for away in (0.0, 2.0, 6.0):  # no, one and three standard deviations of every image
        found, count = moments(module, [torch.full((7, 3, 4, 4), 2.0 + away)])
        assert distance(found, sent, count) == pytest.approx(away / 2.0, rel=1e-5)
    found, count = moments(module, [torch.full((4, 3, 4, 4), 4.0), torch.full((4, 3, 4, 4), 2.0)])
    assert distance(found, sent, count) == pytest.approx(0.5**0.5, rel=1e-5), "root mean square over images"


# -- what earlier layers change for later ones -------------------------------------------------------------------------


def of_state(module: nn.Module) -> dict[str, Tensor]:
    kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    return {name: tensor for name, tensor in kept.items() if name.endswith((MEAN, VARIANCE))}


def test_where_nothing_changes_before_a_norm_its_statistics_are_as_measured() -> None:
    module = network()
    measured = of_state(module)
    last = f"stages.1.1.norm2{MEAN}"
    measured[last] = measured[last] + 0.5
    found = foreseen(module, measured, images(8, seed=5))
    assert set(found) == set(measured)
    for name, tensor in measured.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)
        assert torch.equal(module.get_buffer(name), found[name])


@pytest.mark.parametrize(("shift", "stretch"), [(1.0, 1.0), (0.0, 2.0), (-0.7, 0.4)])
def test_a_linear_change_is_foreseen_exactly_by_any_guides(shift: float, stretch: float) -> None:
    """Norm, norm: what the first will give the second is known from any images, and here it is an affine map."""
    module = nn.Sequential(one_norm(0.0), nn.Conv2d(3, 3, 1, groups=3, bias=False), nn.BatchNorm2d(3))
    module[1].weight.data.copy_(torch.tensor([2.0, -3.0, 4.0])[:, None, None, None])
    x = 1.0 + 2.0 * torch.randn(200, 3, 4, 4, generator=torch.Generator().manual_seed(6))
    start = dict(module.state_dict())
    measured = statistics(start, [moments(module, [x])])
    measured["0.0.running_mean"] += shift
    measured["0.0.running_var"] *= stretch
    other = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    found = foreseen(module, measured, other)
    after = statistics(found, [moments(module, [x])])
    for kind in (MEAN, VARIANCE):
        assert torch.equal(found[f"0.0{kind}"], measured[f"0.0{kind}"])
        torch.testing.assert_close(found[f"2{kind}"], after[f"2{kind}"], rtol=2e-4, atol=2e-4)


def test_one_pass_comes_far_nearer_than_statistics_as_measured() -> None:
    module, x = network(), images(300, seed=2) * 1.3 + 0.4
    start = of_state(module)
    measured = statistics(start, [moments(module, x.split(50))])

    def left(now: dict[str, Tensor]) -> float:
        module.load_state_dict({**module.state_dict(), **now})
        wanted = statistics(now, [moments(module, x.split(50))])
        return max(float((now[name] - wanted[name]).abs().max()) for name in now if name.endswith(MEAN))

    better = foreseen(module, measured, images(16, seed=8))
    assert left(better) < 0.2 * left(measured)
