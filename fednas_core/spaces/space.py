"""What a search space is: the contract that every method, search and test relies on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fednas_core.base.values import Arch, Cost, NormKind, Plan
from fednas_core.spaces.layers import Layer, Make, own_module

if TYPE_CHECKING:
    from typing import Self

    from torch import nn


Ints = np.ndarray[Any, np.dtype[np.int64]]


class SearchSpace(Protocol):
    """A set of architectures that share the tensors of one supernet, ``build(largest)``.

    The constraint that ties the verbs together, tested for every space: ``build(arch)`` has exactly the tensors of
    ``plan(arch)`` and ``private(arch)``, with those shapes, and ``cost(arch)`` is what the network really takes.
    """

    def __hash__(self) -> int:
        """Spaces are values: equal ones stand for each other."""
        ...

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        ...

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def norm(self) -> NormKind:
        """The kind of normalisation."""
        ...

    @property
    def personal(self) -> tuple[str, ...]:
        """The parts of a network that stay on the client: names of modules, none by default."""
        ...

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of the largest network's blocks in order of execution."""
        ...

    @property
    def size(self) -> int:
        """Number of different architectures."""
        ...

    @property
    def gene_choices(self) -> Ints:
        """Number of choices of each entry of an encoded architecture."""
        ...

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

    def describe(self, arch: Arch) -> str:
        """Return the shape of a network in a few words."""
        ...

    def build(self, arch: Arch, make: Make = own_module) -> nn.Module:
        """Return a plain static network: input (batch, channels, size, size), output logits (batch, classes).

        `make` makes the modules of its layers: those of a supernet may be shared by many networks.
        """
        ...

    def layers(self, arch: Arch) -> Iterable[Layer]:
        """Return every layer of an architecture in order of execution."""
        ...

    def plan(self, arch: Arch) -> Plan:
        """Return the region of the supernet that each shared tensor of the subnet owns: what travels and is merged."""
        ...

    def private(self, arch: Arch) -> Plan:
        """Return the regions of the tensors that stay on the client, in a client's own full-size copy of them."""
        ...

    def whole(self, arch: Arch) -> Plan:
        """Return the plan of all that a network consists of, shared tensors first."""
        ...

    def cost(self, arch: Arch) -> Cost:
        """Return MACs, parameters and bytes."""
        ...

    def for_data(self, image_size: int, in_channels: int, classes: int) -> Self:
        """Return this space for images of another size, channel count or number of classes."""
        ...

    def with_norm(self, norm: NormKind) -> Self:
        """Return this space with another normalisation."""
        ...

    def with_personal(self, names: Sequence[str]) -> Self:
        """Return this space with these parts private; raise `ConfigError` for a name that is no part of it."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the space as a JSON object, of which `registry.from_table` makes an equal one."""
        ...
