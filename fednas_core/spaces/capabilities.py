"""What some spaces can do besides: who needs it asks here by name, and hears None where a space cannot.

A space that can inherits the class of the capability, wherever it is defined.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fednas_core.base.errors import ConfigError
from fednas_core.base.values import Arch
from fednas_core.spaces.space import Elastic, Ints, Space


def elastic(space: Space) -> Elastic:
    """Return a space whose choices have an order; raise `ConfigError` for one where none is the larger."""
    if not isinstance(space, Elastic):
        raise ConfigError(
            f"space '{space.name}': its choices have no order from small to large, which is needed here; choose an "
            "elastic space, e.g. space.name = 'small'"
        )
    return space


# -- the closed form of fitness ------------------------------------------------------------------------------------


class Staged(Elastic):
    """A space whose networks have the closed form of fitness of DeepFedNAS (arXiv 2601.15127): elastic ResNets.

    A 3×3 stem, then stages of blocks of two 3×3 convolutions, the first with a 1×1 shortcut, and a linear classifier.
    Genes are d, e and w (see `fednas_core.spaces.resnet`), encoded in that order. `stages` has an entry a stage,
    `widths` and `expansions` are choices in rising order, `extra_blocks` those of a stage besides the first.
    """

    stages: tuple[int, ...]
    widths: tuple[float, ...]
    expansions: tuple[float, ...]
    extra_blocks: int
    in_channels: int
    classes: int

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """Height (= width) of the feature maps: of the stem, then of each stage."""

    @property
    @abstractmethod
    def channels(self) -> Ints:
        """Channels after rounding, shape (1 + stages, widths): stem first."""

    @property
    @abstractmethod
    def inner(self) -> Ints:
        """Inner channels of a block after rounding, shape (1 + stages, widths, expansions); row 0 is unused."""

    @property
    def most_blocks(self) -> int:
        """Blocks of a stage at full depth."""
        return self.extra_blocks + 1


def staged(space: Space) -> Staged | None:
    """Return a space with a closed form of fitness, or None."""
    return space if isinstance(space, Staged) else None


# -- layers that can go --------------------------------------------------------------------------------------------

DescriptorKind = Literal["conv", "depthwise", "shortcut", "pool", "mean", "linear"]


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One layer as DDC (arXiv 1911.12740, section 3.1) and N2N (ICLR 2018) describe it to their policy.

    `outputs` are its channels; `skip_start` and `skip_end` say whether a shortcut leaves before it and arrives behind
    it. `keep` is the index of the gene that keeps it, None for a layer that is never removed.
    """

    kind: DescriptorKind
    kernel: int
    stride: int
    padding: int
    outputs: int
    skip_start: bool = False
    skip_end: bool = False
    keep: int | None = None


class Removable(Elastic):
    """A space of networks from which something can be removed."""

    @property
    @abstractmethod
    def removable(self) -> tuple[str, ...]:
        """What can be removed, by name."""

    @property
    @abstractmethod
    def descriptors(self) -> tuple[Descriptor, ...]:
        """The layers of the largest network in order of execution, as a policy sees them."""

    @abstractmethod
    def masked(self, keep: Sequence[int]) -> Arch:
        """Return the largest network without what is not kept: 1 or 0 for each of `removable`."""


def removable(space: Space) -> Removable | None:
    """Return a space of which something can be removed, or None."""
    return space if isinstance(space, Removable) and space.removable else None
