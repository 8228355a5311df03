"""What every search space promises: tests to inherit with a fixture `space` (see `fednas_core.spaces.space`)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from fednas_core.base.errors import ArchError
from fednas_core.base.values import Arch, Cost
from fednas_core.spaces.registry import from_table
from fednas_core.spaces.space import Signature
from fednas_core.subnets.networks import network
from fednas_core.subnets.packing import extract, shapes, views

SAMPLES = 1000


@contextmanager
def uninitialised() -> Iterator[None]:
    """Networks built inside hold whatever lies in memory: drawing initial values takes most of the time of a build."""
    kinds: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.GroupNorm)
    with pytest.MonkeyPatch.context() as patch:
        for kind in kinds:
            patch.setattr(kind, "reset_parameters", lambda self: None)
        yield


def counted_macs(network: nn.Module, space: Any) -> int:
    """Multiply-accumulates that the layers really do, from the shapes in a forward pass of a batch of no images."""
    total = 0

    def note(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            filters = module.weight.shape[0] * module.weight.shape[1]  # the weight itself may be larger than the kernel
            total += filters * math.prod(module.kernel_size) * math.prod(output.shape[2:])
        elif isinstance(module, nn.Linear):
            total += module.weight.numel()

    hook = register_module_forward_hook(note)
    try:
        with torch.inference_mode():
            network(torch.empty(0, *space.signature.inputs))
    finally:
        hook.remove()
    return total


def real_cost(space: Any, arch: Arch) -> tuple[Cost, dict[str, tuple[int, ...]]]:
    """Cost and tensor shapes counted on the network itself."""
    with uninitialised():
        network = space.build(arch).eval()
    parameters = dict(network.named_parameters())
    size = sum(parameter.numel() for parameter in parameters.values())
    bytes_ = sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
    return Cost(counted_macs(network, space), size, bytes_), {n: tuple(p.shape) for n, p in parameters.items()}


class SearchSpaceContract:
    """Inherit and give a fixture `space`."""

    samples = SAMPLES

    def test_cost_plan_and_network_agree(self, space: Any) -> None:
        rng = np.random.default_rng(11)
        archs = [space.largest, space.smallest, *(space.sample(rng) for _ in range(self.samples))]
        mismatches = []
        for arch in archs:
            cost, tensors = real_cost(space, arch)
            if cost != space.cost(arch) or tensors != shapes(space.plan(arch)):
                mismatches.append(str(arch))
        assert not mismatches, f"{len(mismatches)} of {len(archs)} disagree, e.g. {mismatches[0]}"

    def test_plan_and_private_together_are_the_networks_tensors(self, space: Any) -> None:
        parts = ["head", space.blocks[-1]]
        apart, rng = space.with_personal(parts), np.random.default_rng(16)
        assert apart.largest == space.largest == space.supernet and apart.blocks == space.blocks
        for arch in [space.largest, space.smallest, *(space.sample(rng) for _ in range(20))]:
            shared, private = apart.plan(arch), apart.private(arch)
            assert not set(shared) & set(private) and {**shared, **private} == space.plan(arch)
            assert all(name.startswith(("head.", f"{space.blocks[-1]}.")) for name in private)
            assert "head.weight" in private and space.private(arch) == {} and apart.cost(arch) == space.cost(arch)

    def test_extracted_forward_equals_forward_in_the_supernet(self, space: Any) -> None:
        rng, generator = np.random.default_rng(17), torch.Generator().manual_seed(17)
        whole = shapes(space.plan(space.largest))
        supernet = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in whole.items()}
        images = torch.randn(2, *space.signature.inputs, generator=generator)
        for arch in [space.smallest, *(space.sample(rng) for _ in range(3))]:
            plan = space.plan(arch)
            module = network(space, arch, extract(supernet, plan)).eval()
            with torch.no_grad():
                logits = module(images)
                assert torch.isfinite(logits).all() and logits.std() > 0
                assert torch.equal(functional_call(module, views(supernet, plan), (images,)), logits)

    def test_macs_equal_those_of_torchs_own_counter(self, space: Any) -> None:
        rng = np.random.default_rng(12)
        for arch in [space.largest, space.smallest, *(space.sample(rng) for _ in range(6))]:
            with torch.device("meta"):
                network = space.build(arch).eval()
                image = torch.empty(1, *space.signature.inputs)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                assert network(image).shape == (1, space.signature.outputs)
            assert counter.get_total_flops() == 2 * (space.cost(arch).macs + self.macs_beside(network))

    def macs_beside(self, network: nn.Module) -> int:
        """Multiply-accumulates that a forward pass takes whatever the image, which a cost does not count."""
        return 0

    def test_every_plan_lies_within_the_largest(self, space: Any) -> None:
        whole = shapes(space.plan(space.largest))
        rng = np.random.default_rng(13)
        for arch in [space.smallest, *(space.sample(rng) for _ in range(20))]:
            for name, region in space.plan(arch).items():
                assert len(region) == len(whole[name])
                for part, side in zip(region, whole[name], strict=True):
                    assert part.step is None and 0 <= part.start < part.stop <= side

    def test_smallest_and_largest_bound_every_cost(self, space: Any) -> None:
        low, high = space.cost(space.smallest), space.cost(space.largest)
        rng = np.random.default_rng(14)
        for arch in (space.sample(rng) for _ in range(50)):
            cost = space.cost(arch)
            assert low.macs <= cost.macs <= high.macs
            assert low.params <= cost.params <= high.params
            assert cost.bytes == 4 * cost.params

    def test_larger_genes_cost_no_less(self, space: Any) -> None:
        rng = np.random.default_rng(18)
        for _ in range(20):
            row = rng.integers(0, space.gene_choices)
            less = space.cost(space.decode(row))
            for gene in np.flatnonzero(row < space.gene_choices - 1):
                raised = row.copy()
                raised[gene] += 1
                more = space.cost(space.decode(raised))
                assert less.macs <= more.macs and less.params <= more.params + self.slack

    slack = 0
    """Parameters by which a network may be above that of a larger gene."""

    def test_decode_is_the_inverse_of_encode(self, space: Any) -> None:
        rng = np.random.default_rng(2)
        for _ in range(100):
            arch = space.sample(rng)
            row = space.encode(arch)
            assert row.dtype == np.int64 and row.shape == space.gene_choices.shape
            assert len(row) == sum(len(values) for _, values in arch.genes), "genes in the order of the row"
            assert space.decode(row) == arch and (space.encode(space.decode(row)) == row).all()
        assert (space.encode(space.largest) == space.gene_choices - 1).all()
        assert (space.encode(space.smallest) == 0).all()

    def test_the_space_survives_json_and_other_data(self, space: Any) -> None:
        other = Signature((2, *(2 * side for side in space.signature.inputs[1:])), 5)
        changed = space.for_data(other).with_personal(["head"])
        assert changed.signature == other
        for found in (space, changed):
            table = json.loads(json.dumps(found.to_json()))
            assert from_table(table, "other") == found and hash(from_table(table, "other")) == hash(found)
            assert found.to_json() == table

    def test_json_round_trip_gives_an_equal_hashable_value(self, space: Any) -> None:
        rng = np.random.default_rng(15)
        for arch in [space.largest, space.smallest, *(space.sample(rng) for _ in range(20))]:
            again = space.arch(json.loads(json.dumps(arch.to_json())))
            assert again == arch and hash(again) == hash(arch) and str(again) == str(arch)

    def test_sampling_depends_on_the_generator_alone(self, space: Any) -> None:
        one = [space.sample(np.random.default_rng(5)) for _ in range(3)]
        assert one[0] == one[1] == one[2]
        rng = np.random.default_rng(5)
        assert len({space.sample(rng) for _ in range(30)}) > 5

    @pytest.mark.parametrize("genes", [{}, [], None, "d", {"d": "x"}])
    def test_genes_that_are_no_architecture_are_refused(self, space: Any, genes: Any) -> None:
        with pytest.raises(ArchError, match=space.name):
            space.arch(genes)
