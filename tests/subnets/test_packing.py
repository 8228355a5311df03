from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from contracts.mobile import toy_mobile
from contracts.samples import random_tensors, supernet_of, toy_space
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from fednas_core.base.values import Arch
from fednas_core.spaces.resnet import ResNetSpace
from fednas_core.subnets.merge import Merge
from fednas_core.subnets.networks import subnet
from fednas_core.subnets.packing import copy_into, extract, nested, pack, shapes, unpack, views

SPACES = {norm: toy_space(norm=norm) for norm in ("none", "group")}
genes = st.tuples(*(st.integers(0, n - 1) for n in SPACES["group"].gene_choices.tolist()))
spaces = st.sampled_from(sorted(SPACES)).map(SPACES.__getitem__)


def arch_of(space: ResNetSpace, row: tuple[int, ...]) -> Arch:
    return space.decode(np.array(row))


@given(space=spaces, row=genes, seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_forward_of_the_extracted_network_equals_forward_through_views(
    space: ResNetSpace, row: tuple[int, ...], seed: int
) -> None:
    arch, supernet = arch_of(space, row), supernet_of(space, seed)
    images = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
    network = space.build(arch)
    network.load_state_dict(extract(supernet, space.plan(arch)))
    through_views = functional_call(space.build(arch), views(supernet, space.plan(arch)), (images,))
    torch.testing.assert_close(network(images), through_views, rtol=0, atol=0)
    channels_last = subnet(space, arch, supernet)(images)
    torch.testing.assert_close(channels_last, through_views, rtol=1e-4, atol=1e-4 * float(through_views.abs().max()))


@given(row=genes, seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_gradients_through_views_reach_exactly_what_the_subnet_covers(row: tuple[int, ...], seed: int) -> None:
    space = SPACES["group"]
    arch = arch_of(space, row)
    supernet = {name: tensor.requires_grad_() for name, tensor in supernet_of(space, seed).items()}
    images = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
    functional_call(space.build(arch), views(supernet, space.plan(arch)), (images,)).square().sum().backward()
    own = space.build(arch)
    own.load_state_dict({name: part.detach() for name, part in views(supernet, space.plan(arch)).items()})
    own(images).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in own.named_parameters()}
    for name, tensor in supernet.items():
        expected = torch.zeros_like(tensor)
        if name in gradients:
            expected[space.plan(arch)[name]] = gradients[name]
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad, expected)
        else:
            assert tensor.grad is None


@given(space=spaces, row=genes, seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_merging_what_was_extracted_changes_nothing(space: ResNetSpace, row: tuple[int, ...], seed: int) -> None:
    supernet = supernet_of(space, seed)
    before = {name: tensor.clone() for name, tensor in supernet.items()}
    plan = space.plan(arch_of(space, row))
    merge = Merge(supernet)
    merge.add(plan, extract(supernet, plan), 1.0)
    merge.finish()
    for name, tensor in supernet.items():
        assert torch.equal(tensor, before[name]), name


@given(row=genes)
@settings(max_examples=40, deadline=None)
def test_unpack_is_the_inverse_of_pack(row: tuple[int, ...]) -> None:
    space = SPACES["group"]
    plan = space.plan(arch_of(space, row))
    tensors = random_tensors(plan, 3)
    flat = pack(tensors)
    again = unpack(flat, shapes(plan))
    assert flat.shape == (sum(t.numel() for t in tensors.values()),)
    assert list(again) == list(tensors) and all(torch.equal(again[n], tensors[n]) for n in tensors)


def test_extract_copies_the_regions() -> None:
    space = toy_space()
    supernet, plan = supernet_of(space), space.plan(space.smallest)
    parts = extract(supernet, plan)
    assert list(parts) == list(plan)
    assert torch.equal(parts["stages.0.0.conv1.weight"], supernet["stages.0.0.conv1.weight"][:8, :8])
    parts["head.bias"].fill_(7)
    assert not (supernet["head.bias"] == 7).any()


def test_views_share_memory_with_the_supernet() -> None:
    space = toy_space()
    supernet = supernet_of(space)
    parts = views(supernet, space.plan(space.smallest))
    parts["head.weight"].fill_(7)
    width = parts["head.weight"].shape[1]
    assert (supernet["head.weight"][:, :width] == 7).all() and not (supernet["head.weight"][:, width:] == 7).any()


def test_packing_an_extracted_subnet_costs_no_copy() -> None:
    space = toy_space()
    parts = extract(supernet_of(space), space.plan(space.smallest))
    assert pack(parts).data_ptr() == next(iter(parts.values())).data_ptr()
    other_order = dict(reversed(parts.items()))
    assert torch.equal(pack(other_order), torch.cat([part.reshape(-1) for part in other_order.values()]))


def test_a_buffer_is_reused() -> None:
    space = toy_space()
    buffer = torch.full((100_000,), 9.0)
    parts = extract(supernet_of(space), space.plan(space.smallest), out=buffer)
    assert pack(parts).data_ptr() == buffer.data_ptr()
    assert (buffer[sum(part.numel() for part in parts.values()) :] == 9).all()


def test_sizes_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="5 values cannot fill shapes of 6 values"):
        unpack(torch.zeros(5), {"a": (2, 3)})


def test_neighbours_in_memory_that_share_no_storage_are_copied() -> None:
    buffer = np.arange(6, dtype=np.float32)
    parts = {"a": torch.from_numpy(buffer[:4]), "b": torch.from_numpy(buffer[4:])}
    assert pack(parts).tolist() == [0, 1, 2, 3, 4, 5]


def test_copying_into_a_buffer_leaves_what_lies_behind() -> None:
    buffer = torch.full((8,), 9.0)
    copies = copy_into(buffer, {"a": torch.zeros(3, 2).T, "b": torch.ones(1)})
    assert buffer.tolist() == [0, 0, 0, 0, 0, 0, 1, 9]
    assert copies["a"].shape == (2, 3) and copies["b"].data_ptr() == buffer[6:].data_ptr()


@pytest.mark.parametrize("space", [toy_space(), toy_mobile()], ids=["resnet", "mobile"])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_views_of_a_subnet_of_a_subnet(space: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    supernet, row = supernet_of(space), space.encode(space.sample(rng))
    outer, inner = space.decode(row), space.decode(np.minimum(row, rng.integers(0, space.gene_choices)))
    found = views(views(supernet, space.plan(outer)), nested(space.plan(inner), space.plan(outer)))
    wanted = views(supernet, space.plan(inner))
    assert list(found) == list(wanted)
    for name, part in wanted.items():
        assert found[name].data_ptr() == part.data_ptr() and found[name].stride() == part.stride()
        assert torch.equal(found[name], part)


def test_a_smaller_kernel_is_the_centre_of_its_outer_network_too() -> None:
    weight = "stages.1.0.depthwise.weight"
    plans = {k: {weight: (slice(0, 8), slice(0, 1), slice(s, s + k), slice(s, s + k))} for k, s in ((3, 2), (5, 1))}
    assert nested(plans[3], plans[5]) == {weight: (slice(0, 8), slice(0, 1), slice(1, 4), slice(1, 4))}
    assert nested({}, plans[5]) == {}


@pytest.mark.parametrize("outer", [{}, {"a": (slice(0, 4), slice(1, 3))}, {"a": (slice(0, 2), slice(0, 3))}])
def test_what_lies_outside_is_refused(outer: Any) -> None:
    with pytest.raises(ValueError, match="tensor 'a' of the subnet does not lie within"):
        nested({"a": (slice(0, 3), slice(0, 3))}, outer)


def test_nothing_at_all_can_be_packed_and_extracted() -> None:
    """Where every layer is private nothing travels."""
    flat = pack({})
    assert flat.shape == (0,) and unpack(flat, {}) == {} == extract({}, {}) == views({}, {})
    assert copy_into(torch.zeros(3), {}) == {}
