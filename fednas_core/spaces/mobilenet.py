"""The elastic mobile network of once-for-all (ICLR 2020) and FedSup (arXiv 2206.01366).

A 3×3 stem, stages of inverted residual blocks (1×1 expansion, k×k depthwise, 1×1 projection; MobileNetV2,
arXiv 1801.04381), optionally the tail of MobileNetV3, and a linear classifier. Elastic are the resolution of the
images, per stage the number of blocks and their output channels, and per stage or per block the size of the depthwise
kernel and the expansion ratio of the middle channels. Every gene is an index of its choices, of which larger ones cost
more; `resolutions` and the fields of `Stage` list them.

A block of expansion 1 has no expansion convolution: with 1×1 shortcuts that makes FedSup's space, whose blocks are
those of MobileNet-V1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from fednas_core.base.values import Arch, NormKind
from fednas_core.spaces.channels import Channels
from fednas_core.spaces.images import ImageSpace
from fednas_core.spaces.layers import (
    CHANNELS_PER_GROUP,
    Conv,
    Depthwise,
    Layer,
    Linear,
    Make,
    Norm,
    SqueezeExcite,
    own_module,
    stride_at,
)
from fednas_core.spaces.mobilespec import Activation, MobileBlockSpec, MobileNetSpec, Stage
from fednas_core.spaces.resnet import make_divisible
from fednas_core.spaces.space import Elastic, Signature

if TYPE_CHECKING:
    from typing import Self

    from torch import nn

Granularity = Literal["stage", "block"]
Shortcuts = Literal["projection", "identity"]
_REDUCTION = 4
"""Channels of a squeeze-excite layer's input for each of its inner ones."""


@dataclass(frozen=True)
class MobileNetSpace(ImageSpace, Elastic):
    """An elastic mobile network: every choice is a field; read one from TOML with `fednas_core.spaces.load`.

    `stem` are the channels of the first convolution. `tail` are those of a last 1×1 convolution and, behind the mean
    over space, of a fully connected layer (empty: neither). `activation` is that of stem and tail. `granularity` says
    whether kernel and expansion are chosen for each ``stage`` or each ``block``. `resolutions` are the sizes in pixels
    to which the network may bring its images, the largest being `image_size` (empty: just that).

    `shortcuts`: with ``projection`` every block has a 1×1 convolution as shortcut, without norm or bias, after average
    pooling where it is strided. FedSup has these parameters (2,989,322 in all) but puts an identity in their place
    where stride is 1 and widths are equal, so that 1,130,496 of them never do anything; here all of them work. With
    ``identity`` a block adds its input where its stride is 1 and its widths are equal in every architecture, and has no
    shortcut elsewhere: once-for-all.

    `transforms` are once-for-all's learned kernel transforms (see `Depthwise`), computed anew in every forward pass. A
    layer with them may have a few parameters more than one of a larger kernel, never more MACs.
    """

    name: str
    stem: int
    stages: tuple[Stage, ...]
    stem_stride: int = 1
    activation: Activation = "relu"
    tail: tuple[int, ...] = ()
    granularity: Granularity = "block"
    shortcuts: Shortcuts = "identity"
    transforms: bool = False
    resolutions: tuple[int, ...] = ()
    image_size: int = 32
    in_channels: int = 3
    classes: int = 10
    norm: NormKind = "group"
    personal: tuple[str, ...] = ()

    kind: ClassVar[str] = "mobilenet"

    def __post_init__(self) -> None:
        """Refuse fields that describe no network."""
        object.__setattr__(self, "resolutions", self.resolutions or (self.image_size,))
        for number, stage in enumerate(self.stages):
            self._check_stage(stage, f"stages[{number}].")
        groups = f"multiples of {CHANNELS_PER_GROUP}"
        self._must(bool(self.stages), "stages", self.stages, "one or more tables")
        self._must(self.stem > 0 and self.stem % CHANNELS_PER_GROUP == 0, "stem", self.stem, groups)
        tail = len(self.tail) in (0, 2) and all(c > 0 and c % CHANNELS_PER_GROUP == 0 for c in self.tail)
        self._must(tail, "tail", self.tail, f"nothing or two {groups}")
        self._must(self.stem_stride in (1, 2), "stem_stride", self.stem_stride, "1 or 2")
        kinds = {"activation": Activation, "granularity": Granularity, "shortcuts": Shortcuts, "norm": NormKind}
        for field, kind in kinds.items():
            found = getattr(self, field)
            self._must(found in get_args(kind), field, found, ", ".join(get_args(kind)))
        self._check_images()
        sizes = _rises(self.resolutions) and self.resolutions[-1] == self.image_size
        allowed_sizes = f"sizes in pixels in rising order, the last being image_size, {self.image_size}"
        self._must(sizes, "resolutions", self.resolutions, allowed_sizes)
        self._check_norm(self.sizes(self.resolutions[0])[-1])

    def _check_stage(self, stage: Stage, where: str) -> None:
        groups = all(width % CHANNELS_PER_GROUP == 0 for width in stage.widths)
        rising = "in rising order"
        for field, values, fine, allowed in (
            ("widths", stage.widths, groups, f"multiples of {CHANNELS_PER_GROUP} {rising}"),
            ("depths", stage.depths, True, f"numbers of blocks {rising}"),
            ("kernels", stage.kernels, all(k % 2 for k in stage.kernels), f"odd numbers {rising}"),
            ("expansions", stage.expansions, all(1 <= e <= 16 for e in stage.expansions), f"1 to 16 {rising}"),
        ):
            self._must(fine and _rises(values), where + field, values, f"one or more {allowed}")
        self._must(stage.stride in (1, 2), f"{where}stride", stage.stride, "1 or 2")
        acts = get_args(Activation)
        self._must(stage.activation in acts, f"{where}activation", stage.activation, ", ".join(acts))

    def sizes(self, resolution: int) -> tuple[int, ...]:
        """Height (= width) of the feature maps at a resolution: of the stem, then of each stage."""
        out = [math.ceil(resolution / self.stem_stride)]
        for stage in self.stages:
            out.append(math.ceil(out[-1] / stage.stride))
        return tuple(out)

    # -- architectures -------------------------------------------------------------------------------------------

    @cached_property
    def slots(self) -> tuple[tuple[int, int], ...]:
        """Stage and block of each entry of the genes e and k; the block is 0 where they hold for a whole stage."""
        stages = enumerate(self.stages)
        by_block = self.granularity == "block"
        return tuple((j, b) for j, stage in stages for b in range(stage.depths[-1] if by_block else 1))

    @cached_property
    def choices(self) -> Mapping[str, tuple[int, ...]]:
        """Number of choices of each entry of each gene: d, e, k, r and w, as an architecture is encoded."""
        slots = [self.stages[j] for j, _ in self.slots]
        return {
            "d": tuple(len(stage.depths) for stage in self.stages),
            "e": tuple(len(stage.expansions) for stage in slots),
            "k": tuple(len(stage.kernels) for stage in slots),
            "r": (len(self.resolutions),),
            "w": tuple(len(stage.widths) for stage in self.stages),
        }

    def arch(self, genes: Mapping[str, Any]) -> Arch:
        """Check ``{"d": …, "e": …, "k": …, "r": …, "w": …}`` and return the canonical `Arch` (see `Space.arch`).

        All are indices of choices: d, w of each stage, e, k of each stage or block, r of the network.
        """
        found = self._indices(genes)
        active = [b < self.stages[j].depths[found["d"][j]] for j, b in self.slots]
        for gene in ("e", "k"):
            found[gene] = tuple(i if used else 0 for i, used in zip(found[gene], active, strict=True))
        return Arch(tuple(found.items()))

    @property
    def size(self) -> int:
        """Number of different architectures."""
        count = len(self.resolutions)
        for stage in self.stages:
            pairs = len(stage.kernels) * len(stage.expansions)
            by_block = self.granularity == "block"
            count *= len(stage.widths) * sum(pairs ** (depth if by_block else 1) for depth in stage.depths)
        return count

    def for_data(self, signature: Signature) -> Self:
        """Return this space for other data; resolutions change in proportion, those that become equal are one."""
        fields = self._images(signature)
        scaled = [max(1, math.floor(r * fields["image_size"] / self.image_size + 0.5)) for r in self.resolutions]
        return self._changed(**fields, resolutions=tuple(dict.fromkeys(scaled)))

    def chosen(self, arch: Arch, stage: int, block: int) -> tuple[int, float]:
        """Return kernel size and expansion ratio of a block."""
        slot = self._slot_of[stage, block if self.granularity == "block" else 0]
        choices = self.stages[stage]
        return choices.kernels[int(arch["k"][slot])], choices.expansions[int(arch["e"][slot])]

    @cached_property
    def _slot_of(self) -> Mapping[tuple[int, int], int]:
        return {at: slot for slot, at in enumerate(self.slots)}

    def keeps_width(self, stage: int) -> bool:
        """Whether a stage's first block has as many output as input channels in every architecture."""
        before = self.stages[stage - 1].widths if stage else (self.stem,)
        return len(before) == 1 and before == self.stages[stage].widths

    # -- the description -------------------------------------------------------------------------------------------

    def spec(self, arch: Arch) -> MobileNetSpec:
        """Return the description that everything about a network is derived from."""
        return _spec(self, arch)

    def layers(self, arch: Arch) -> Iterable[Layer]:
        """Return every layer of an architecture in order of execution."""
        return self.spec(arch).layers()

    def movable(self, arch: Arch) -> Iterable[Channels]:
        """See `Elastic.movable`."""
        return self.spec(arch).channels()

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """The names of the largest network's blocks in order of execution."""
        return tuple(f"stages.{j}.{b}" for j, stage in enumerate(self.stages) for b in range(stage.depths[-1]))

    def describe(self, arch: Arch) -> str:
        """Return resolution, channels × blocks of each stage, mean kernel size and mean expansion."""
        spec = self.spec(arch)
        stages = " · ".join(f"{blocks[-1].project.c_out}×{len(blocks)}" for blocks in spec.stages)
        chosen = [self.chosen(arch, j, b) for j, blocks in enumerate(spec.stages) for b in range(len(blocks))]
        kernels, ratios = zip(*chosen, strict=True)
        return f"{spec.resolution}px · {stages}  k {sum(kernels) / len(kernels):.1f} e {sum(ratios) / len(ratios):.2f}"

    def build(self, arch: Arch, make: Make = own_module) -> nn.Module:
        """Return the static network of `arch` (see `Space.build`)."""
        from fednas_core.spaces.networks import MobileNet

        return MobileNet(self.spec(arch), make)


@lru_cache(maxsize=4096)
def _spec(space: MobileNetSpace, arch: Arch) -> MobileNetSpec:
    resolution = space.resolutions[int(arch["r"][0])]
    sizes, norm, c = space.sizes(resolution), space.norm, space.stem
    stem = Conv("stem", space.in_channels, c, 3, stride_at(resolution, space.stem_stride), sizes[0])
    stages = []
    for j, stage in enumerate(space.stages):
        width, before, blocks = stage.widths[int(arch["w"][j])], sizes[j], []
        for b in range(stage.depths[int(arch["d"][j])]):
            blocks.append(_block(space, (j, b), (c, width), (before, sizes[j + 1]), space.chosen(arch, j, b)))
            c, before = width, sizes[j + 1]
        stages.append(tuple(blocks))
    size, tail, tail_norm, mix = sizes[-1], None, None, None
    if space.tail:
        wide, features = space.tail
        tail, tail_norm = Conv("tail", c, wide, 1, 1, size), Norm("tail_norm", wide, norm)
        mix, c = Linear("mix", wide, features, bias=False), features
    stem_norm, head = Norm("stem_norm", space.stem, norm), Linear("head", c, space.classes)
    return MobileNetSpec(resolution, space.activation, stem, stem_norm, tuple(stages), tail, tail_norm, mix, head)


def _block(
    space: MobileNetSpace,
    at: tuple[int, int],
    widths: tuple[int, int],
    sizes: tuple[int, int],
    chosen: tuple[int, float],
) -> MobileBlockSpec:
    """Return the block `at` (stage, number); widths and sizes are those of its input and its output."""
    (j, b), (c_in, c_out), (before, size), (kernel, ratio) = at, widths, sizes, chosen
    stage, name, norm = space.stages[j], f"stages.{j}.{b}", space.norm
    stride = stride_at(before, stage.stride) if b == 0 else 1
    expands, projects = ratio > 1, space.shortcuts == "projection"
    mid = make_divisible(c_in * ratio) if expands else c_in
    reduced = make_divisible(mid / _REDUCTION)
    adds = projects or (stride == 1 and (b > 0 or space.keeps_width(j)))
    return MobileBlockSpec(
        expand=Conv(f"{name}.expand", c_in, mid, 1, 1, before) if expands else None,
        expand_norm=Norm(f"{name}.expand_norm", mid, norm) if expands else None,
        depthwise=Depthwise(f"{name}.depthwise", mid, kernel, stride, size, stage.kernels, space.transforms),
        depthwise_norm=Norm(f"{name}.depthwise_norm", mid, norm),
        squeeze=SqueezeExcite(f"{name}.squeeze", mid, reduced, size) if stage.squeeze_excite else None,
        project=Conv(f"{name}.project", mid, c_out, 1, 1, size),
        project_norm=Norm(f"{name}.project_norm", c_out, norm, silent=adds),
        shortcut=Conv(f"{name}.shortcut", c_in, c_out, 1, 1, size) if projects else None,
        adds=adds,
        activation=stage.activation,
    )


def _rises(values: tuple[float, ...]) -> bool:
    """Whether values are one or more, positive and in strictly rising order."""
    return bool(values) and values[0] > 0 and all(a < b for a, b in itertools.pairwise(values))
