"""What a search space is: the contract that every method, search and test relies on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fednas_core.values import Arch, Cost, Plan

if TYPE_CHECKING:
    from torch import nn


Ints = np.ndarray[Any, np.dtype[np.int64]]


class SearchSpace(Protocol):
    """A set of architectures that share the tensors of one supernet, ``build(largest)``.

    The constraint that ties the verbs together, tested for every space: ``build(arch)`` has exactly the tensors of
    ``plan(arch)``, with those shapes, and ``cost(arch)`` is what the network really takes.
    """

    @property
    def name(self) -> str:
        """The name under which the space is chosen."""
        ...

    @property
    def largest(self) -> Arch:
        """The architecture that owns every coordinate of the supernet."""
        ...

    @property
    def smallest(self) -> Arch:
        """The architecture of least cost."""
        ...

    def arch(self, genes: Mapping[str, Any]) -> Arch:
        """Check genes, e.g. parsed JSON, and return the canonical `Arch`; raise `ArchError` naming gene and choices."""
        ...

    def sample(self, rng: np.random.Generator) -> Arch:
        """Draw every gene independently and uniformly."""
        ...

    def encode(self, arch: Arch) -> Ints:
        """Return the architecture as a vector of indices of choices, of which larger ones cost more."""
        ...

    def decode(self, row: Ints) -> Arch:
        """Return the architecture that such a vector means: the inverse of `encode`."""
        ...

    def build(self, arch: Arch) -> nn.Module:
        """Return a plain static network: input (batch, channels, size, size), output logits (batch, classes)."""
        ...

    def plan(self, arch: Arch) -> Plan:
        """Return the region of the supernet that each tensor of the subnet owns."""
        ...

    def cost(self, arch: Arch) -> Cost:
        """Return MACs, parameters and bytes."""
        ...
