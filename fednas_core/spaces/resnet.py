"""The elastic ResNet of SuperFedNAS (ECCV 2024) and DeepFedNAS (arXiv 2601.15127).

A 3×3 stem, then stages of one or more blocks (3×3, 3×3, shortcut) and a linear classifier. Elastic are, per stage,
the number of extra blocks `d` and the width index `w`; per block, the expansion ratio `e` of its inner channels; and
the width index of the stem. One rounding rule holds everywhere, ``make_divisible(c·e, 8)``, and the first block of a
stage always has its projection, so the golden costs of DeepFedNAS are those of the real network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fednas_core.base.errors import ArchError
from fednas_core.base.values import Arch, NormKind
from fednas_core.spaces.capabilities import Staged
from fednas_core.spaces.channels import Channels
from fednas_core.spaces.images import ImageSpace
from fednas_core.spaces.layers import NORMS, Conv, Layer, Linear, Make, Norm, own_module, stride_at
from fednas_core.spaces.resnetspec import BlockSpec, ResNetSpec
from fednas_core.spaces.space import Ints

if TYPE_CHECKING:
    from torch import nn

DIVISOR = 8


def make_divisible(value: float, divisor: int = DIVISOR) -> int:
    """Round to the nearest multiple of `divisor`, at least one, never more than a tenth below `value` (MobileNet)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


@dataclass(frozen=True)
class ResNetSpace(ImageSpace, Staged):
    """An elastic ResNet: every choice is a field; read one from TOML with `fednas_core.spaces.load`.

    Genes of an `Arch`: ``d`` (stages) extra blocks; ``e`` (stages × most blocks) expansion ratios, stage by stage,
    inactive ones set to the smallest; ``w`` (1 + stages) indices into `widths`, stem first.
    """

    name: str
    stem: int
    stages: tuple[int, ...]
    strides: tuple[int, ...]
    widths: tuple[float, ...]
    expansions: tuple[float, ...]
    extra_blocks: int = 2
    stem_stride: int = 1
    image_size: int = 32
    in_channels: int = 3
    classes: int = 10
    norm: NormKind = "group"
    personal: tuple[str, ...] = ()

    kind: ClassVar[str] = "resnet"

    def __post_init__(self) -> None:
        """Refuse fields that describe no network."""
        wide = bool(self.stages) and all(c >= 1 for c in self.stages)
        self._must(wide, "stages", self.stages, "a list of one or more positive base widths")
        fine = len(self.strides) == len(self.stages) and all(s in (1, 2) for s in self.strides)
        self._must(fine, "strides", self.strides, f"{len(self.stages)} values (one a stage), each 1 or 2")
        for field in ("widths", "expansions"):
            values = getattr(self, field)
            fine = bool(values) and list(values) == sorted(set(values)) and 0 < values[0] <= values[-1] <= 8
            self._must(fine, field, values, "one or more distinct numbers in (0, 8], in rising order")
        self._must(self.stem >= 1, "stem", self.stem, "an integer of at least 1")
        self._must(self.extra_blocks >= 0, "extra_blocks", self.extra_blocks, "an integer of at least 0")
        self._check_images()
        self._must(self.stem_stride in (1, 2), "stem_stride", self.stem_stride, "1 or 2")
        self._must(self.norm in NORMS, "norm", self.norm, ", ".join(NORMS))
        self._check_norm(self.sizes[-1])

    # -- sizes ---------------------------------------------------------------------------------------------------

    @cached_property
    def channels(self) -> Ints:
        """Channels after rounding, shape (1 + stages, widths): stem first."""
        bases = (self.stem, *self.stages)
        return np.array([[make_divisible(base * w) for w in self.widths] for base in bases], dtype=np.int64)

    @cached_property
    def inner(self) -> Ints:
        """Inner channels of a block after rounding, shape (1 + stages, widths, expansions); row 0 is unused."""
        return np.array(
            [[[make_divisible(float(c) * e) for e in self.expansions] for c in row] for row in self.channels],
            dtype=np.int64,
        )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Height (= width) of the feature maps: of the stem, then of each stage."""
        size = math.ceil(self.image_size / self.stem_stride)
        out = [size]
        for stride in self.strides:
            size = math.ceil(size / stride)
            out.append(size)
        return tuple(out)

    # -- architectures -------------------------------------------------------------------------------------------

    def arch(self, genes: Mapping[str, Any]) -> Arch:
        """Check ``{"d": …, "e": …, "w": …}`` and return the canonical `Arch` (see `Space.arch`)."""
        blocks, stages = self.most_blocks, len(self.stages)
        genes = self._genes(genes, ("d", "e", "w"))
        depths = self._integers("d", genes["d"], [self.extra_blocks] * stages)
        widths = self._integers("w", genes["w"], [len(self.widths) - 1] * (stages + 1))
        ratios = self._gene_list("e", genes["e"], stages * blocks)
        expansions = []
        for i, ratio in enumerate(ratios):
            active = i % blocks <= depths[i // blocks]
            expansions.append(self._expansion(i, ratio) if active else self.expansions[0])
        return Arch((("d", depths), ("e", tuple(expansions)), ("w", widths)))

    def _expansion(self, position: int, value: object) -> float:
        if isinstance(value, (int, float, np.floating)):
            for choice in self.expansions:
                if abs(float(value) - choice) < 1e-9:
                    return choice
        choices = ", ".join(map(str, self.expansions))
        raise ArchError(f"gene e[{position}] of space '{self.name}' is {value!r}, allowed: {choices}")

    @cached_property
    def choices(self) -> Mapping[str, tuple[int, ...]]:
        """Number of choices of each entry of each gene: d, e and w, as an architecture is encoded."""
        n, ratios, widths = len(self.stages), len(self.expansions), len(self.widths)
        return {"d": (self.most_blocks,) * n, "e": (ratios,) * (n * self.most_blocks), "w": (widths,) * (n + 1)}

    def encode(self, arch: Arch) -> Ints:
        """Return the architecture as integers in the order d, e (indices), w: a row of a population."""
        ratios = [self.expansions.index(float(e)) for e in arch["e"]]
        return np.array([*arch["d"], *ratios, *arch["w"]], dtype=np.int64)

    def decode(self, row: Ints) -> Arch:
        """Return the architecture that a row of a population means: the inverse of `encode`."""
        n, blocks = len(self.stages), self.most_blocks
        row = np.asarray(row)
        return self.arch(
            {
                "d": row[:n].tolist(),
                "e": [self.expansions[i] for i in row[n : n + n * blocks]],
                "w": row[n + n * blocks :].tolist(),
            }
        )

    # -- the description -------------------------------------------------------------------------------------------

    def spec(self, arch: Arch) -> ResNetSpec:
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
        return tuple(f"stages.{j}.{b}" for j in range(len(self.stages)) for b in range(self.most_blocks))

    @property
    def size(self) -> int:
        """Number of different architectures."""
        active = sum(len(self.expansions) ** depth for depth in range(1, self.most_blocks + 1))
        return int(active ** len(self.stages) * len(self.widths) ** (len(self.stages) + 1))

    def describe(self, arch: Arch) -> str:
        """Return channels of the stem, channels × blocks of each stage and the mean expansion."""
        widths = [int(self.channels[i, int(w)]) for i, w in enumerate(arch["w"])]
        stages = (f"{width}×{int(d) + 1}" for width, d in zip(widths[1:], arch["d"], strict=True))
        active = [e for i, e in enumerate(arch["e"]) if i % self.most_blocks <= arch["d"][i // self.most_blocks]]
        return f"{widths[0]} · {' · '.join(stages)}  e {sum(active) / len(active):.2f}"

    def build(self, arch: Arch, make: Make = own_module) -> nn.Module:
        """Return the static network of `arch` (see `Space.build`)."""
        from fednas_core.spaces.networks import ResNet

        return ResNet(self.spec(arch), make)


@lru_cache(maxsize=4096)
def _spec(space: ResNetSpace, arch: Arch) -> ResNetSpec:
    depths = [int(d) for d in arch["d"]]
    ratios = [float(e) for e in arch["e"]]
    c = [int(space.channels[i, int(w)]) for i, w in enumerate(arch["w"])]
    stem_stride = stride_at(space.image_size, space.stem_stride)
    stem = Conv("stem", space.in_channels, c[0], 3, stem_stride, space.sizes[0])
    stages = []
    for j, depth in enumerate(depths, start=1):
        blocks = []
        for b in range(depth + 1):
            c_in, stride = (c[j - 1], stride_at(space.sizes[j - 1], space.strides[j - 1])) if b == 0 else (c[j], 1)
            mid = make_divisible(c[j] * ratios[(j - 1) * space.most_blocks + b])
            blocks.append(_block(f"stages.{j - 1}.{b}", (c_in, mid, c[j]), stride, space.sizes[j], space.norm))
        stages.append(tuple(blocks))
    head = Linear("head", c[-1], space.classes)
    return ResNetSpec(stem, Norm("stem_norm", c[0], space.norm), tuple(stages), head)


def _block(name: str, widths: tuple[int, int, int], stride: int, size: int, norm: NormKind) -> BlockSpec:
    c_in, mid, c_out = widths
    projects = name.endswith(".0")
    return BlockSpec(
        conv1=Conv(f"{name}.conv1", c_in, mid, 3, stride, size),
        norm1=Norm(f"{name}.norm1", mid, norm),
        conv2=Conv(f"{name}.conv2", mid, c_out, 3, 1, size),
        norm2=Norm(f"{name}.norm2", c_out, norm),
        shortcut=Conv(f"{name}.shortcut", c_in, c_out, 1, 1, size) if projects else None,
        shortcut_norm=Norm(f"{name}.shortcut_norm", c_out, norm) if projects else None,
    )
