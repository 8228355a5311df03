from __future__ import annotations

import pytest
import torch
from contracts.samples import supernet_of, toy_space
from torch import nn

from fednas_core.base.errors import DataError
from fednas_core.spaces.networks import initial_weights
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
        torch.testing.assert_close(norm.running_var, x.var((0, 2, 3), unbiased=False))


def test_statistics_of_no_images_are_refused() -> None:
    space, once = toy_space(norm="batch"), iter([images()])
    module = subnet(space, space.smallest, initial_weights(space, 3))
    calibrate(module, once)
    with pytest.raises(DataError, match="batch statistics: the batches hold no image, at least one is needed"):
        calibrate(module, once)


@pytest.mark.parametrize("sizes", [(12,), (6, 6), (9, 3), (11, 1), (7, 4, 1)])
def test_calibration_weighs_batches_by_their_images(sizes: tuple[int, ...]) -> None:
    space = toy_space(norm="batch")
    module = subnet(space, space.smallest, initial_weights(space, 3))
    everything = 5 * torch.arange(12.0)[:, None, None, None] + images()
    calibrate(module, [9 * images(2)])  # is forgotten
    calibrate(module, everything.split(sizes))
    inputs = module.get_submodule("stem")(everything)
    norm = module.get_submodule("stem_norm")
    torch.testing.assert_close(norm.running_mean, inputs.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, inputs.var((0, 2, 3), unbiased=False))
    assert norm.momentum == 0.1


def test_a_last_image_by_itself_is_calibrated_with_the_batch_before() -> None:
    space = toy_space(norm="batch", image_size=1)
    batches = [torch.randn(size, 2, 1, 1, generator=torch.Generator().manual_seed(size)) for size in (4, 3, 1)]
    found = []
    for given in (batches, [batches[0], torch.cat(batches[1:])]):
        module = subnet(space, space.largest, initial_weights(space, 3))
        calibrate(module, iter(given))
        found.append(module.state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_statistics_of_a_single_value_are_refused_in_words() -> None:
    space = toy_space(norm="batch", image_size=1)
    module = subnet(space, space.largest, initial_weights(space, 3))
    with pytest.raises(DataError, match=r"(?s)a batch of a single image.* two images or more"):
        calibrate(module, [torch.randn(1, 2, 1, 1)])
    with pytest.raises(DataError, match="hold no image"):
        calibrate(module, [])
    larger = toy_space(norm="batch", image_size=4)
    calibrate(subnet(larger, larger.largest, initial_weights(larger, 3)), [torch.randn(1, 2, 4, 4)])


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
