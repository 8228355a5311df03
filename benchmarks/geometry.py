"""Which computations read memory that nobody wrote, on this processor with this torch?

    python benchmarks/geometry.py                 # bare convolutions, then the layers and networks of every preset
    python benchmarks/geometry.py --spaces small  # the layers and networks of some presets only
    python benchmarks/geometry.py --quick         # what the test looks at

The program starts itself again so that every block which malloc hands out (glibc) is full of 3·10³⁸. It then compares
outputs and gradients in bf16 and float32 with those in float64, two passes each, for torch's own convolutions and
poolings over kernels, strides, maps, groups, batches, layouts and weights that are parts of larger tensors; for every
layer that the smallest and the largest network of each preset make of images of 1, 2, 3 and 8 pixels; and it trains
and evaluates whole networks of those spaces by every rule of training, three times from the same start.

Exit status 1 if a layer or a network of a preset is affected, 2 if memory cannot be filled here.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from fednas_core.base.values import Arch, NormKind
from fednas_core.spaces.layers import CHANNELS_PER_GROUP
from fednas_core.spaces.layers.norm import parametric_norm
from fednas_core.spaces.layers.squeeze import squeeze_excitation
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.registry import load
from fednas_core.spaces.registry import names as presets
from fednas_core.spaces.space import Elastic, Signature
from fednas_core.subnets.networks import network
from fednas_core.training.distil import Teacher, train_student
from fednas_core.training.evaluate import evaluate
from fednas_core.training.loop import train
from fednas_core.training.sandwich import Sandwich
from fednas_core.training.settings import TrainSettings

TUNABLES = "glibc.malloc.perturb=128:glibc.malloc.tcache_count=0"
"""Makes malloc fill what it hands out with the byte 0x7f, blocks of all sizes: 3.4·10³⁸ in float32 and in bf16."""
SIZES = (1, 2, 3, 8)
"""Heights (= widths) in pixels of the images: the smallest there are, and those of the digits."""
NORMS: tuple[NormKind, ...] = ("group", "batch", "parametric", "none")
LAYERS = (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.BatchNorm2d, parametric_norm(), squeeze_excitation())
ERROR = 0.1
"""Relative error above which a result is wrong: bf16 has 8 bits."""
KINKED = {squeeze_excitation(): 0.5}
"""The same for layers with a ReLU inside: rounding may turn a unit on or off, and with it its part of the gradient."""
FAR = 2.0
"""Relative difference of what two steps in bf16 and in float32 make of a network, above which one is wrong: some
tiny networks lose all of their gradient to rounding."""
SMALL = 3_000_000
"""Parameters up to which a preset's largest network is trained as well: of others its layers are looked at."""

Compute = Callable[[], tuple[Tensor, ...]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="*", help="presets whose layers and networks to look at (default: all)")
    parser.add_argument("--quick", action="store_true", help="presets only, few layers, images of 1 and 2 pixels")
    options = parser.parse_args()
    sizes, norms = ((1, 2), ("group",)) if options.quick else (SIZES, NORMS)
    if TUNABLES not in os.environ.get("GLIBC_TUNABLES", ""):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "GLIBC_TUNABLES": TUNABLES})
    if not all(bool((torch.empty(size) > 1e38).all()) for size in (8, 1000, 100_000)):
        print("memory cannot be filled before it is handed out: this needs glibc's malloc")
        return 2
    torch.set_num_threads(1)
    if not options.quick and not options.spaces:
        for words in sorted(set(bare())):
            print(f"torch: {words}")
    affected = {}
    for name in options.spaces or presets():
        space = load(name)
        affected[name] = sorted({*layers(space, sizes, norms, options.quick), *networks(space, sizes, options.quick)})
    print(json.dumps(affected, indent=1, ensure_ascii=False))
    return int(any(affected.values()))


# -- torch's own ---------------------------------------------------------------------------------------------------


def bare() -> Iterator[str]:
    """Yield what is wrong with convolutions and poolings by themselves."""
    batches, layouts, channels = (1, 2, 16, 32), (torch.channels_last, torch.contiguous_format), (3, 16, 64)
    for kernel, stride, side, n, layout in itertools.product((1, 3, 5, 7), (1, 2), (1, 2, 3, 4, 8), batches, layouts):
        for c, depthwise, within in itertools.product(channels, (False, True), (False, True)):
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(n, c, side, side, generator=generator).to(memory_format=layout)
            conv = nn.Conv2d(c, c if depthwise else 32, kernel, stride, kernel // 2, groups=c if depthwise else 1)
            where = f"{kernel}×{kernel}{' depthwise' if depthwise else ''}, stride {stride}, maps {side}×{side}"
            for what in wrong(drawn(conv, generator, within), x):
                yield f"convolution {where}: {what}"
    pools = {
        "mean pooling": nn.AvgPool2d(2, ceil_mode=True),
        "max pooling": nn.MaxPool2d(2, ceil_mode=True),
        "bilinear": nn.Upsample(size=(5, 5), mode="bilinear"),
    }
    for (name, pool), side, n, layout in itertools.product(pools.items(), (1, 2, 3, 4, 8), batches, layouts):
        x = torch.randn(n, 16, side, side, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
        for what in wrong(pool, x):
            yield f"{name}, maps {side}×{side}: {what}"


def drawn(layer: nn.Module, generator: torch.Generator, within: bool) -> nn.Module:
    """Give a layer weights at random, with `within` those in the middle of larger tensors; return it."""
    for module in layer.to_empty(device="cpu").modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            room = CHANNELS_PER_GROUP if within else 0
            outer = torch.randn([side + room for side in parameter.shape], generator=generator)
            outer /= parameter[0].numel() ** 0.5
            middle = tuple(slice(room // 2, room // 2 + side) for side in parameter.shape)
            setattr(module, name, nn.Parameter(outer[middle]))
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    return layer


def wrong(layer: nn.Module, x: Tensor) -> Iterator[str]:
    """Yield which results of a layer are wrong, and how it computed: in bf16 as training and evaluation do, in fp32."""
    exact = results(copy.deepcopy(layer).double(), x.double())
    error = KINKED.get(type(layer), ERROR)
    names = ("output", "gradient of the input", *(f"gradient of {name}" for name, _ in layer.named_parameters()))
    for precision, _ in itertools.product(("fp32", "bf16"), range(2)):
        found = results(layer, x, autocast=precision == "bf16")
        for name, ours, truth in zip(names, found, exact, strict=True):
            if not near(ours, truth, error):
                yield f"{name} in {precision}"
    with torch.inference_mode():
        output = copy.deepcopy(layer).eval().bfloat16()(x.bfloat16())
        if not near(output, copy.deepcopy(layer).eval().double()(x.double()), error):
            yield "output with weights in bf16"


def results(layer: nn.Module, x: Tensor, autocast: bool = False) -> tuple[Tensor, ...]:
    """Return a layer's output and the gradients of its input and parameters, given one of the output."""
    x = x.detach().requires_grad_()
    for parameter in layer.parameters():
        parameter.grad = None
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        y = layer.train()(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype))
    gradients = [parameter.grad for parameter in (x, *layer.parameters())]
    return y.detach(), *(gradient for gradient in gradients if gradient is not None)


def near(found: Tensor, truth: Tensor, error: float) -> bool:
    """Whether a result is right but for rounding: of what cancels exactly, a hundredth of a unit is left."""
    off, size = (found.double() - truth.double()).norm(), truth.double().norm()
    return bool(off <= error * size + 0.01 * truth.numel() ** 0.5 * max(1.0, float(size)) ** 0.5)


# -- those of the search spaces ------------------------------------------------------------------------------------


def layers(space: Elastic, sizes: Sequence[int], norms: Sequence[NormKind], quick: bool) -> Iterator[str]:
    """Yield what is wrong with a layer of the smallest or the largest network, for images of few pixels.

    `quick`: one layer, the first, stands for all of its kind, kernel, stride and map.
    """
    seen = set[object]()
    for norm, size in itertools.product(norms, sizes):
        fitted = space.for_data(Signature((space.in_channels, size, size), 10)).with_norm(norm)
        for arch in (fitted.smallest, fitted.largest):
            for layer, shape in met(fitted, arch):
                where = f"{type(layer).__name__}({layer.extra_repr()}) over {shape}"
                kind = type(layer), *(getattr(layer, key, 0) for key in ("kernel_size", "stride")), shape[1:]
                if (kind if quick else where) in seen:
                    continue
                seen.add(kind if quick else where)
                for n, within in itertools.product((2,) if quick else (2, 16), (False, True)):
                    generator = torch.Generator().manual_seed(0)
                    real = drawn(layer, generator, within)
                    x = torch.randn(n, *shape, generator=generator)
                    x = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
                    yield from (f"{where}: {what}" for what in wrong(real, x))


def met(space: Elastic, arch: Arch) -> Iterator[tuple[nn.Module, tuple[int, ...]]]:
    """Yield the layers of a network, without weights, and the shape of what each is given of one image."""
    inputs: dict[nn.Module, tuple[int, ...]] = {}

    def note(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs[layer] = tuple(given[0].shape[1:])

    with torch.device("meta"):
        module = space.build(arch)
        for layer in module.modules():
            if isinstance(layer, LAYERS):
                layer.register_forward_pre_hook(note)
        module(torch.empty(2, space.in_channels, space.image_size, space.image_size))
    for layer, shape in tuple(inputs.items()):
        layer._forward_pre_hooks.clear()
        yield layer, shape


def networks(space: Elastic, sizes: Sequence[int], quick: bool) -> Iterator[str]:
    """Yield which rules of training and evaluation do not give one result each, or one far from float32's.

    `quick`: the smallest network only.
    """
    for size in sizes:
        fitted = space.for_data(Signature((1, size, size), 10))
        archs = [fitted.smallest]
        if not quick and fitted.cost(fitted.largest).params <= SMALL:
            archs.append(fitted.largest)
        for arch, (name, rule) in itertools.product(archs, RULES.items()):
            first, *others = [rule(fitted, arch, "bf16") for _ in range(3)]
            where = f"{name} of {fitted.describe(arch)}, images of {size}×{size}"
            if not all(torch.equal(first, other) for other in others):
                yield f"{where}: another result each time"
            truth = rule(fitted, arch, "fp32")
            if not bool((first - truth).norm() < FAR * truth.norm()):
                yield f"{where}: far from float32"


Rule = Callable[[Elastic, Arch, str], Tensor]
TRAINING = TrainSettings(epochs=1, batch=8, lr=0.01, clip=0.0)


def batches(space: Elastic) -> list[tuple[Tensor, Tensor]]:
    """Return two batches of eight images at random, with labels."""
    generator = torch.Generator().manual_seed(2)
    size = space.image_size
    x = torch.randn(16, space.in_channels, size, size, generator=generator)
    return list(zip(x.split(8), torch.randint(0, space.classes, (16,), generator=generator).split(8), strict=True))


def moved(module: nn.Module, before: Mapping[str, Tensor]) -> Tensor:
    """Return by how much training moved all parameters, flat."""
    return torch.cat([(p.detach() - before[name]).flatten() for name, p in module.named_parameters()])


def by_labels(space: Elastic, arch: Arch, precision: str) -> Tensor:
    before = initial_weights(space, 0, arch)
    module = network(space, arch, before)
    train(module, [batches(space)], TRAINING, precision)
    return moved(module, before)


def by_a_teacher(space: Elastic, arch: Arch, precision: str) -> Tensor:
    before = initial_weights(space, 0, arch)
    module, teacher = network(space, arch, before), network(space, arch, initial_weights(space, 1, arch))
    train_student(module, Teacher(teacher), [batches(space)], TRAINING, precision)
    return moved(module, before)


def by_the_sandwich(space: Elastic, arch: Arch, precision: str) -> Tensor:
    before = initial_weights(space, 0, arch)
    sandwich = Sandwich(space, arch, before)
    sandwich.train([batches(space)], lambda: [space.smallest], TRAINING, precision)
    return moved(sandwich.largest, before)


def evaluated(space: Elastic, arch: Arch, precision: str) -> Tensor:
    return torch.tensor(
        [evaluate(network(space, arch, initial_weights(space, 0, arch)), batches(space), precision).loss]
    )


RULES: Mapping[str, Rule] = {
    "training": by_labels,
    "distillation": by_a_teacher,
    "the sandwich": by_the_sandwich,
    "evaluation": evaluated,
}


if __name__ == "__main__":
    sys.exit(main())
