from __future__ import annotations

import pytest
import torch
from contracts.samples import supernet_of, toy_space
from torch import nn

from fednas_core.spaces.modules import initial_weights
from fednas_core.subnets.networks import calibrate, network, shapes_of, subnet
from fednas_core.subnets.packing import extract, pack


def images(n: int = 12, seed: int = 1) -> torch.Tensor:
    return 2.0 + 3.0 * torch.randn(n, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_a_network_holds_a_copy_of_its_tensors(norm: str) -> None:
    space = toy_space(norm=norm)
    supernet = supernet_of(space)
    module = subnet(space, space.smallest, supernet)
    wanted = extract(supernet, space.plan(space.smallest))
    found = dict(module.named_parameters())
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    with torch.no_grad():
        found["head.bias"].fill_(5)
    assert not (supernet["head.bias"] == 5).any()
    with_statistics = shapes_of(space, space.smallest, statistics=True)
    assert list(with_statistics)[: len(wanted)] == list(wanted) == list(shapes_of(space, space.smallest, False))
    assert (len(with_statistics) > len(wanted)) == (norm == "batch")
    assert pack(found).data_ptr() == found["stem.weight"].data_ptr(), "parameters do not lie in one flat buffer"


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_tensors_of_another_architecture_are_refused(norm: str) -> None:
    space = toy_space(norm=norm)
    supernet = supernet_of(space)
    with pytest.raises((RuntimeError, ValueError)):
        network(space, space.largest, extract(supernet, space.plan(space.smallest)))


def test_calibration_takes_the_exact_statistics_of_one_batch() -> None:
    space = toy_space(norm="batch")
    module = subnet(space, space.largest, initial_weights(space, 3))
    inputs: dict[str, torch.Tensor] = {}
    for name, child in module.named_modules():
        if isinstance(child, nn.BatchNorm2d):
            child.register_forward_pre_hook(lambda _, x, name=name: inputs.__setitem__(name, x[0].detach().clone()))
    calibrate(module, [images()])
    assert not module.training and "stages.1.1.norm2" in inputs
    for name, x in inputs.items():
        norm = module.get_submodule(name)
        torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, x.var((0, 2, 3), unbiased=True))


def test_calibration_averages_over_batches_and_forgets_what_was_there() -> None:
    space = toy_space(norm="batch")
    module = subnet(space, space.smallest, initial_weights(space, 3))
    first, second = images(seed=1), images(seed=2)
    singles = []
    for batch in (first, second):
        calibrate(module, [batch])
        singles.append(module.get_submodule("stem_norm").running_mean.clone())
    calibrate(module, [first, second])
    torch.testing.assert_close(module.get_submodule("stem_norm").running_mean, (singles[0] + singles[1]) / 2)


def test_calibrated_network_sees_in_evaluation_what_it_saw_in_training() -> None:
    space = toy_space(norm="batch")
    module = subnet(space, space.smallest, initial_weights(space, 3))
    batch = images(64)
    calibrate(module, [batch])
    evaluated = module(batch)
    module.train()
    torch.testing.assert_close(evaluated, module(batch), rtol=0.05, atol=0.05)


def test_networks_without_batch_norm_need_no_calibration() -> None:
    space = toy_space()
    module = subnet(space, space.smallest, supernet_of(space))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    calibrate(module, iter(()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
