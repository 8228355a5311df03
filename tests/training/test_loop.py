from __future__ import annotations

import itertools
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from contracts.samples import toy_space
from torch import nn

from fednas_core.base.errors import DataError, DeadlineError
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.networks import subnet
from fednas_core.training import loop
from fednas_core.training.loop import Batch, Sgd, autocast, clip, to_images, train
from fednas_core.training.settings import TrainSettings


def problem(n: int = 48, batch: int = 16) -> list[Batch]:
    """Three classes of noisy images that differ in brightness and in one corner."""
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(n) % 3
    x = torch.randn(n, 2, 6, 6, generator=generator) + (y - 1)[:, None, None, None]
    x[y == 2, :, :2, :2] += 3
    return list(zip(x.split(batch), y.split(batch), strict=True))


def net(norm: str = "group", seed: int = 1) -> nn.Module:
    space = toy_space(norm=norm)
    return subnet(space, space.smallest, initial_weights(space, seed))


def trained(settings: TrainSettings, epochs: int = 2, precision: str = "fp32", **more: Any) -> tuple[nn.Module, Any]:
    module = net()
    return module, train(module, [problem()] * epochs, settings, precision, **more)


def test_loss_falls_on_a_small_problem() -> None:
    _, first = trained(TrainSettings(lr=0.05), epochs=1)
    module, last = trained(TrainSettings(lr=0.05, momentum=0.9), epochs=12)
    assert last.loss < 0.5 * first.loss and last.accuracy > 0.9 > first.accuracy
    assert (first.images, last.images) == (48, 12 * 48)
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_an_epoch_without_images_is_refused() -> None:
    once = iter(problem())
    with pytest.raises(DataError, match="training: epoch 2 holds no image, at least one is needed"):
        train(net(), [once, once], TrainSettings())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_start_gives_the_same_tensors_to_the_bit(precision: str) -> None:
    one, outcome = trained(TrainSettings(momentum=0.9), precision=precision)
    two, again = trained(TrainSettings(momentum=0.9), precision=precision)
    assert outcome == again
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b) and a.dtype == torch.float32


def test_bf16_trains_nearly_as_fp32_does() -> None:
    _, exact = trained(TrainSettings(lr=0.05, momentum=0.9), epochs=12)
    _, rounded = trained(TrainSettings(lr=0.05, momentum=0.9), epochs=12, precision="bf16")
    assert rounded.accuracy > 0.9 and abs(rounded.loss - exact.loss) < 0.3


def test_precision_is_that_of_the_convolutions() -> None:
    seen = []
    module = net()
    module.stem.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    for precision in ("fp32", "bf16"):
        train(module, [problem(16)], TrainSettings(), precision)
    assert seen == [torch.float32, torch.bfloat16]
    with autocast(torch.device("cpu"), "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_one_step_is_that_of_sgd_computed_by_hand() -> None:
    settings = TrainSettings(lr=0.1, weight_decay=0.01, clip=0.0)
    module, twin = net(), net()
    (x, y), *_ = problem(16)
    train(module, [[(x, y)]], settings)
    nn.functional.cross_entropy(twin(to_images(x, torch.device("cpu"))), y).backward()
    for after, before in zip(module.parameters(), twin.parameters(), strict=True):
        assert before.grad is not None
        torch.testing.assert_close(after, before - 0.1 * (before.grad + 0.01 * before))


def test_clip_bounds_the_step() -> None:
    def moved(clip: float) -> float:
        module, start = net(), net()
        train(module, [problem(16)], TrainSettings(lr=1.0, weight_decay=0.0, clip=clip))
        steps = [(a - b).detach() for a, b in zip(module.parameters(), start.parameters(), strict=True)]
        return float(torch.linalg.vector_norm(torch.cat([step.flatten() for step in steps])))

    assert moved(0.0) > 0.5
    assert moved(0.01) == pytest.approx(0.01, rel=1e-3)
    assert moved(1e9) == pytest.approx(moved(0.0), rel=1e-6)


def test_clip_value_bounds_every_entry_of_the_step() -> None:
    module, start = net(), net()
    train(module, [problem(16)[:1]], TrainSettings(lr=1.0, weight_decay=0.0, clip=0.0, clip_value=0.01))
    steps = [(a - b).detach() for a, b in zip(module.parameters(), start.parameters(), strict=True)]
    sizes = torch.cat([step.abs().flatten() for step in steps])
    assert float(sizes.max()) == pytest.approx(0.01, rel=1e-3) and 0 < float((sizes < 0.009).float().mean()) < 1


def test_both_clips_hold_together_and_pass_over_what_has_no_gradient() -> None:
    one, two = (torch.zeros(2, requires_grad=True) for _ in range(2))
    one.grad = torch.tensor([3.0, -40.0])
    clip([one, two], TrainSettings(clip=1.0, clip_value=4.0))
    torch.testing.assert_close(one.grad, torch.tensor([0.6, -0.8]))
    assert two.grad is None


def test_weight_decay_shrinks_the_weights() -> None:
    def size(decay: float) -> float:
        module = net()
        train(module, [problem()] * 3, TrainSettings(lr=0.05, weight_decay=decay))
        return float(sum(parameter.detach().square().sum() for parameter in module.parameters()))

    assert size(0.5) < 0.95 * size(0.0)


def test_momentum_and_label_smoothing_take_effect() -> None:
    plain, _ = trained(TrainSettings())
    for other in (TrainSettings(momentum=0.9), TrainSettings(label_smoothing=0.3)):
        assert not torch.equal(next(plain.parameters()), next(trained(other)[0].parameters()))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_outcome_is_that_of_the_last_epoch_and_its_loss_the_plain_cross_entropy(smoothing: float) -> None:
    module = net()
    outcome = train(module, [problem(48), problem(16)], TrainSettings(lr=0.0, label_smoothing=smoothing))
    assert outcome.images == 64
    (x, y), *_ = problem(16)
    logits = net().train()(x).detach()
    assert outcome.loss == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-5)
    assert outcome.accuracy == pytest.approx(float((logits.argmax(1) == y).float().mean()))


def test_the_deadline_ends_training(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeadlineError, match="not done by its deadline, after 0 images"):
        trained(TrainSettings(), until=time.monotonic() - 1)

    ticks = itertools.count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    with pytest.raises(DeadlineError, match="after 64 images"):  # a batch a tick, three batches an epoch
        trained(TrainSettings(), until=3)


def test_frozen_parameters_stay() -> None:
    module, start = net(), net()
    module.stem.requires_grad_(False)
    train(module, [problem()], TrainSettings())
    assert torch.equal(module.stem.weight, start.stem.weight)
    assert not torch.equal(module.head.weight, start.head.weight)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_that_of_torch_to_the_bit(momentum: float) -> None:
    mine, theirs = net(), net()
    ours = Sgd(list(mine.parameters()), 0.05, momentum, 5e-3)
    reference = torch.optim.SGD(theirs.parameters(), 0.05, momentum, weight_decay=5e-3, fused=True)
    for x, y in problem() * 2:
        for module, optimiser in ((mine, ours), (theirs, reference)):
            optimiser.zero_grad()  # type: ignore[attr-defined]
            torch.nn.functional.cross_entropy(module(x), y).backward()
            optimiser.step()  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


def test_sgd_leaves_what_has_no_gradient() -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimiser = Sgd([used, unused], 0.1, 0.9, 0.5)
    used.sum().backward()
    optimiser.step()
    assert unused.tolist() == [1, 1] and used.tolist() != [1, 1]


def test_sgd_takes_up_what_has_its_first_gradient_later() -> None:
    """A tensor that only some subnets own: its momentum begins where its gradients do, as in torch's own loop."""
    ours, theirs = ([torch.ones(3, requires_grad=True) for _ in range(2)] for _ in range(2))
    mine = Sgd(ours, 0.1, 0.9, 0.01)
    reference = torch.optim.SGD(theirs, 0.1, 0.9, weight_decay=0.01, foreach=False, fused=False)
    for used in ((0,), (0, 1), (1,), (0, 1)):
        for parameters, optimiser in ((ours, mine), (theirs, reference)):
            optimiser.zero_grad()  # type: ignore[attr-defined]
            sum((parameters[i] ** 2).sum() for i in used).backward()  # type: ignore[union-attr]
            optimiser.step()  # type: ignore[attr-defined]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
