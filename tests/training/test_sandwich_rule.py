from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from contracts.samples import supernet_of, toy_space
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fednas_core.base.errors import DeadlineError
from fednas_core.base.values import Arch
from fednas_core.spaces.mobilenet import MobileNetSpace
from fednas_core.spaces.mobilespec import Stage
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.networks import subnet
from fednas_core.subnets.packing import nested, views
from fednas_core.training.loop import Batch, train
from fednas_core.training.sandwich import Sandwich
from fednas_core.training.settings import TrainSettings

NORMS = ("none", "group", "batch", "parametric", "parametric-sample")


def mobile(**changes: Any) -> MobileNetSpace:
    """Two stages, elastic in everything, for images of 8×8 pixels."""
    stages = (
        Stage((8, 16), (1, 2), kernels=(3, 5), expansions=(1.0, 2.0)),
        Stage((16, 24), (1, 2), stride=2, kernels=(3, 5), expansions=(1.0, 2.0), squeeze_excite=True),
    )
    values: dict[str, Any] = {
        "name": "toy-mobile", "stem": 8, "stages": stages, "resolutions": (6, 8), "image_size": 8, "in_channels": 2,
        "classes": 3,
    }  # fmt: skip
    return MobileNetSpace(**{**values, **changes})


def batches(space: Any, n: int = 24, batch: int = 8) -> list[Batch]:
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(n) % 3
    x = torch.randn(n, 2, space.image_size, space.image_size, generator=generator) + (y - 1)[:, None, None, None]
    return list(zip(x.split(batch), y.split(batch), strict=True))


def drawn(space: Any, seed: int = 1, outer: Arch | None = None) -> list[Arch]:
    """Two random networks and the smallest, within `outer`."""
    rng, top = np.random.default_rng(seed), space.encode(outer or space.largest)
    rows = [rng.integers(0, space.gene_choices) for _ in range(2)] + [space.encode(space.smallest)]
    return list(dict.fromkeys(space.decode(np.minimum(row, top)) for row in rows))


def whole(space: Any, arch: Arch) -> dict[str, Any]:
    return {**space.plan(arch), **space.private(arch)}


def reference(
    space: Any, tensors: dict[str, Tensor], outer: Arch, archs: Sequence[Arch], batch: Batch, distill: bool = True
) -> dict[str, Tensor]:
    """The sum of all losses, derived by autograd through views of the outer network's tensors."""
    x, y = batch
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}

    def logits(arch: Arch) -> Tensor:
        regions = nested(whole(space, arch), whole(space, outer))
        return functional_call(space.build(arch).train(), views(leaves, regions), (x,))

    teacher = logits(outer)
    total = functional.cross_entropy(teacher, y)
    for arch in archs:
        if distill:
            soft = teacher.detach().softmax(1)
            total = total + functional.kl_div(logits(arch).log_softmax(1), soft, reduction="batchmean")
        else:
            total = total + functional.cross_entropy(logits(arch), y)
    total.backward()
    return {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}


def same_gradients(module: nn.Module, wanted: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, wanted[name], rtol=1e-4, atol=1e-5 * float(wanted[name].abs().max()))


@pytest.mark.parametrize("space", [toy_space(), mobile(), mobile(transforms=True)], ids=["resnet", "mobile", "learned"])
@pytest.mark.parametrize("distill", [True, False], ids=["distilled", "labels"])
def test_gradients_are_those_of_the_sum_of_losses(space: Any, distill: bool) -> None:
    tensors, archs = supernet_of(space), drawn(space)
    sandwich = Sandwich(space, space.largest, tensors, distill=distill)
    batch = batches(space)[0]
    sandwich.gradients(batch, archs)
    same_gradients(sandwich.largest, reference(space, tensors, space.largest, archs, batch, distill))


@pytest.mark.parametrize("space", [toy_space(), mobile()], ids=["resnet", "mobile"])
def test_a_sandwich_inside_a_subnet(space: Any) -> None:
    """Elastic kernels are centres: the regions of a subnet's subnet do not begin at zero."""
    outer = space.decode(np.maximum(space.gene_choices - 1 - (np.arange(len(space.gene_choices)) % 3 == 0), 0))
    assert outer != space.largest
    supernet = supernet_of(space)
    tensors = {name: part.clone() for name, part in views(supernet, space.plan(outer)).items()}
    archs = drawn(space, 3, outer)
    given = views(supernet, space.plan(outer))
    sandwich = Sandwich(space, outer, given)
    batch = batches(space)[0]
    sandwich.gradients(batch, archs)
    same_gradients(sandwich.largest, reference(space, tensors, outer, archs, batch))
    assert all(torch.equal(given[name], tensors[name]) for name in tensors)


def test_no_gradient_flows_to_the_teacher() -> None:
    """Without labels to learn, i.e. from the distillation alone, what only the largest network owns has no gradient."""
    space = toy_space()
    tensors = supernet_of(space)
    batch = batches(space)[0]
    alone, together = Sandwich(space, space.largest, tensors), Sandwich(space, space.largest, tensors)
    alone.gradients(batch, [])
    together.gradients(batch, [space.smallest])
    plan, twin = space.plan(space.smallest), dict(alone.largest.named_parameters())
    changed = 0
    for name, parameter in together.largest.named_parameters():
        difference = parameter.grad - twin[name].grad
        if name in plan:
            changed += int(difference[plan[name]].count_nonzero())
            difference[plan[name]] = 0
        assert not difference.any(), name
    assert changed


def test_identical_twins_have_nothing_to_teach_each_other() -> None:
    space = toy_space(widths=(1.0,), expansions=(1.0,), extra_blocks=0)
    assert space.largest == space.smallest
    sandwich = Sandwich(space, space.largest, initial_weights(space, 1))
    module = subnet(space, space.largest, initial_weights(space, 1))
    settings = TrainSettings(lr=0.05, momentum=0.9, label_smoothing=0.1)
    outcome = sandwich.train([batches(space)] * 2, lambda: [space.smallest], settings)
    assert outcome == train(module, [batches(space)] * 2, settings)
    for mine, plain in zip(sandwich.largest.parameters(), module.parameters(), strict=True):
        assert torch.equal(mine, plain)
    assert sandwich.forward_macs == 48 * space.cost(space.largest).macs


def test_macs_are_those_of_every_network_that_was_trained() -> None:
    space = toy_space()
    archs = drawn(space)
    sandwich = Sandwich(space, space.largest, supernet_of(space))
    outcome = sandwich.train([batches(space)], lambda: [*archs, archs[0]], TrainSettings(lr=0.01))
    macs = sum(space.cost(arch).macs for arch in {space.largest, *archs})
    assert outcome.images == 24 and sandwich.forward_macs == 24 * macs


def test_what_only_the_largest_covers_moves_as_it_does_alone() -> None:
    """One step: outside the subnets' regions it is that of plain training."""
    space = toy_space()
    settings = TrainSettings(lr=0.1, weight_decay=0.0, clip=0.0)
    plain = subnet(space, space.largest, supernet_of(space))
    sandwich = Sandwich(space, space.largest, supernet_of(space))
    train(plain, [batches(space)[:1]], settings)
    sandwich.train([batches(space)[:1]], lambda: [space.smallest], settings)
    plan = space.plan(space.smallest)
    for (name, mine), theirs in zip(sandwich.largest.named_parameters(), plain.parameters(), strict=True):
        outside = torch.ones(mine.shape, dtype=torch.bool)
        if name in plan:
            outside[plan[name]] = False
            assert not torch.equal(mine[plan[name]], theirs[plan[name]]), name
        assert torch.equal(mine[outside], theirs[outside]), name


def test_what_no_trained_network_uses_stays() -> None:
    """The largest network owns the kernel transforms and uses none: only smaller kernels train them."""
    space = mobile(transforms=True)
    small, name = space.smallest, "stages.0.0.depthwise.transform3"
    settings = TrainSettings(lr=0.1, weight_decay=0.0)
    for archs, moves in (([], False), ([small], True)):
        sandwich = Sandwich(space, space.largest, initial_weights(space, 1))
        sandwich.train([batches(space)], lambda archs=archs: archs, settings)
        assert torch.equal(sandwich.largest.get_parameter(name), torch.eye(9)) != moves


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("make", "precision"), [(toy_space, "fp32"), (toy_space, "bf16"), (mobile, "fp32")])
def test_every_norm_and_precision_trains(make: Any, norm: str, precision: str) -> None:
    space = make(norm=norm)
    sandwich = Sandwich(space, space.largest, initial_weights(space, 1))
    before = {name: parameter.detach().clone() for name, parameter in sandwich.largest.named_parameters()}
    rng = np.random.default_rng(1)
    first, last = (
        sandwich.train([batches(space)] * epochs, lambda: drawn(space, int(rng.integers(99))), settings, precision)
        for epochs, settings in ((1, TrainSettings(lr=0.0)), (6, TrainSettings(lr=0.02, clip_value=1.0)))
    )
    assert last.loss < first.loss
    for name, parameter in sandwich.largest.named_parameters():
        assert torch.isfinite(parameter).all() and parameter.dtype == torch.float32
        assert not torch.equal(parameter, before[name]), name
    assert all(not buffer.is_meta for buffer in sandwich.largest.buffers())


@pytest.mark.filterwarnings("error")
def test_the_same_draws_give_the_same_tensors_to_the_bit() -> None:
    space = mobile()

    def result(seed: int) -> list[Tensor]:
        sandwich = Sandwich(space, space.largest, initial_weights(space, 1))
        rng = np.random.default_rng(seed)
        sandwich.train([batches(space)] * 2, lambda: drawn(space, int(rng.integers(99))), TrainSettings(lr=0.05))
        return [parameter.detach() for parameter in sandwich.largest.parameters()]

    one, two, other = result(1), result(1), result(2)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_subnets_learn_from_the_largest() -> None:
    """Distillation alone brings the smallest network near what the largest says."""
    space = toy_space()
    sandwich = Sandwich(space, space.largest, initial_weights(space, 3))
    (x, y), *_ = batches(space)

    @torch.no_grad()
    def divergence() -> float:
        parts = views(dict(sandwich.largest.named_parameters()), space.plan(space.smallest))
        small = functional_call(space.build(space.smallest), parts, (x,))
        return float(functional.kl_div(small.log_softmax(1), sandwich.largest(x).softmax(1), reduction="batchmean"))

    settings = TrainSettings(lr=0.05, momentum=0.9, weight_decay=0.0)
    sandwich.train([[(x, y)]] * 10, lambda: [], settings)
    untaught = divergence()
    sandwich.train([[(x, y)]] * 40, lambda: [space.smallest], settings)
    assert divergence() < 0.3 * untaught


def test_private_layers_are_trained_with_the_rest() -> None:
    space = toy_space().with_personal(["head"])
    supernet = supernet_of(toy_space())
    sandwich = Sandwich(space, space.largest, supernet)
    before = {name: parameter.detach().clone() for name, parameter in sandwich.largest.named_parameters()}
    sandwich.train([batches(space)], lambda: drawn(space), TrainSettings(lr=0.05))
    after = dict(sandwich.largest.named_parameters())
    assert set(after) == set(supernet) and "head.weight" not in space.plan(space.largest)
    assert not torch.equal(after["head.weight"], before["head.weight"])


def test_a_network_that_is_no_part_of_the_largest_is_refused() -> None:
    space = toy_space()
    sandwich = Sandwich(space, space.smallest, views(supernet_of(space), space.plan(space.smallest)))
    with pytest.raises(ValueError, match="does not lie within"):
        sandwich.gradients(batches(space)[0], [space.largest])


def test_the_deadline_ends_training() -> None:
    space = toy_space()
    sandwich = Sandwich(space, space.largest, supernet_of(space))
    with pytest.raises(DeadlineError, match="not done by its deadline, after 0 images"):
        sandwich.train([batches(space)], lambda: [space.smallest], TrainSettings(), until=time.monotonic() - 1)


def test_without_ends_random_subnets_alone_learn_the_labels() -> None:
    space = toy_space()
    supernet, (batch, *_) = supernet_of(space), batches(space)
    archs = [arch for arch in drawn(space, 3) if arch != space.largest]
    plain = Sandwich(space, space.largest, supernet, distill=True, ends=False)
    plain.gradients(batch, archs)
    wanted = {name: torch.zeros_like(tensor) for name, tensor in supernet.items()}
    x, y = batch
    for arch in archs:
        module = subnet(space, arch, supernet).train()
        functional.cross_entropy(module(x), y).backward()
        for name, region in space.plan(arch).items():
            wanted[name][region] += dict(module.named_parameters())[name].grad
    for name, parameter in plain.largest.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, wanted[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ends", [True, False])
def test_the_outcome_is_the_plain_cross_entropy_of_the_first_network(ends: bool) -> None:
    space = toy_space()
    inside = Sandwich(space, space.largest, initial_weights(space, 1), ends=ends)
    settings = TrainSettings(lr=0.0, label_smoothing=0.3)
    outcome = inside.train([batches(space)], lambda: [space.smallest, space.largest], settings)
    first = space.largest if ends else space.smallest
    module = subnet(space, first, initial_weights(space, 1)).train()
    plain = [float(functional.cross_entropy(module(x), y)) for x, y in batches(space)]
    assert outcome.loss == pytest.approx(np.mean(plain), rel=1e-4)


@pytest.mark.parametrize("ends", [True, False])
def test_tensors_that_only_some_networks_own_train_with_momentum(ends: bool) -> None:
    """Kernel transforms, and blocks that are not drawn in every step, have no gradient in some of them."""
    space = mobile(transforms=True)
    inside = Sandwich(space, space.largest, initial_weights(space, 1), ends=ends)
    draws = iter(
        [[space.smallest], drawn(space, 2), [space.largest], drawn(space, 3), drawn(space, 4), [space.smallest]]
    )
    settings = TrainSettings(epochs=2, lr=0.05, momentum=0.9, precision="fp32")
    before = {name: parameter.detach().clone() for name, parameter in inside.largest.named_parameters()}
    outcome = inside.train([batches(space), batches(space)], lambda: next(draws), settings)
    assert np.isfinite(outcome.loss) and outcome.images == 48
    moved = [name for name, tensor in inside.largest.named_parameters() if not torch.equal(tensor, before[name])]
    assert any("transform" in name for name in moved)
