"""What a search space is: the contract that every method, search and test relies on, and what follows from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fednas_core.base.errors import ArchError, ConfigError
from fednas_core.base.values import Arch, Cost, NormKind, Plan
from fednas_core.spaces.channels import Channels
from fednas_core.spaces.layers import Layer, Make, cost_of, own_module, plan_of

if TYPE_CHECKING:
    from typing import Self

    from torch import nn

Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Signature:
    """What goes into a network and what comes out of it.

    `inputs` is the shape of one example, e.g. (channels, height, width) of an image; `outputs` the number of values
    that are predicted for it, e.g. one logit a class.
    """

    inputs: tuple[int, ...]
    outputs: int


class Space(ABC):
    """A set of architectures that share the tensors of one supernet: a base of frozen dataclasses.

    A space says which layers an architecture has, and builds a network of them; plan, private part and cost follow.
    The constraint that ties them together, tested for every space: ``build(arch)`` has exactly the tensors of
    ``plan(arch)`` and ``private(arch)``, with those shapes, and ``cost(arch)`` is what the network really takes.

    `name` is that under which the space is chosen, `norm` the kind of normalisation. `personal` are the parts of a
    network that stay on the client (FedPer, arXiv 1912.00818, section 3): names of modules, e.g. ``head`` or
    ``stages.3``. Their tensors are in `private`, all others in `plan`.
    """

    kind: ClassVar[str]
    name: str
    norm: NormKind
    personal: tuple[str, ...]

    # -- what a space must say -------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def signature(self) -> Signature:
        """What goes in and what comes out."""

    @property
    @abstractmethod
    def supernet(self) -> Arch:
        """All architectures in one, which owns every coordinate of every tensor: its plan are the tensors there are."""

    @property
    @abstractmethod
    def blocks(self) -> tuple[str, ...]:
        """The names of the supernet's blocks in order of execution."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of different architectures."""

    @abstractmethod
    def arch(self, genes: Mapping[str, Any]) -> Arch:
        """Check genes, e.g. parsed JSON, and return the canonical `Arch`; raise `ArchError` naming gene and choices."""

    @abstractmethod
    def describe(self, arch: Arch) -> str:
        """Return the shape of a network in a few words."""

    @abstractmethod
    def layers(self, arch: Arch) -> Iterable[Layer]:
        """Return every layer of an architecture in order of execution."""

    @abstractmethod
    def build(self, arch: Arch, make: Make = own_module) -> nn.Module:
        """Return a plain static network: input (batch, *signature.inputs), output (batch, signature.outputs).

        `make` makes the modules of its layers: those of a supernet may be shared by many networks.
        """

    @abstractmethod
    def for_data(self, signature: Signature) -> Self:
        """Return this space for other data; raise `ConfigError` for such as its networks do not take."""

    # -- what follows from it --------------------------------------------------------------------------------------

    def plan(self, arch: Arch) -> Plan:
        """Return the region of the supernet that each shared tensor owns: what travels and is merged."""
        return {name: region for name, region in plan_of(self.layers(arch)).items() if not self._stays(name)}

    def private(self, arch: Arch) -> Plan:
        """Return the regions of the tensors that stay on the client, in its own full-size copy of them."""
        if not self.personal:
            return {}
        return {name: region for name, region in plan_of(self.layers(arch)).items() if self._stays(name)}

    def whole(self, arch: Arch) -> Plan:
        """Return the plan of all that a network consists of, shared tensors first."""
        return {**self.plan(arch), **self.private(arch)}

    def cost(self, arch: Arch) -> Cost:
        """Return MACs, parameters and bytes of the whole network."""
        return cost_of(self.layers(arch))

    def with_norm(self, norm: NormKind) -> Self:
        """Return this space with another normalisation."""
        return self._changed(norm=norm)

    def with_personal(self, names: Sequence[str]) -> Self:
        """Return this space with these parts private; raise `ConfigError` for a name that no tensor's begins with."""
        changed = self._changed(personal=tuple(names))
        tensors = plan_of(self.layers(self.supernet))
        for name in names:
            if not any(_within(tensor, name) for tensor in tensors):
                parts = dict.fromkeys(tensor.split(".")[0] for tensor in tensors)
                raise ConfigError(
                    f"setting 'personal.layers': space '{self.name}' has no layer {name!r}, allowed: "
                    f"{', '.join(parts)}, or a part of one, e.g. {self.blocks[-1]}"
                )
        return changed

    def to_json(self) -> dict[str, Any]:
        """Return kind and fields as JSON values: `registry.from_table` makes an equal space of them."""
        return {"kind": self.kind, **_listed(self)}

    def _changed(self, **changes: Any) -> Self:
        return replace(self, **changes)  # type: ignore[type-var]

    def _stays(self, name: str) -> bool:
        return any(_within(name, part) for part in self.personal)

    # -- checking genes and fields, for who writes a space ---------------------------------------------------------

    def _genes(self, genes: object, names: Sequence[str]) -> Mapping[str, Any]:
        if not isinstance(genes, Mapping) or set(genes) != set(names):
            found = ", ".join(map(str, genes)) if isinstance(genes, Mapping) else type(genes).__name__
            needed = f"{', '.join(names[:-1])} and {names[-1]}"
            raise ArchError(f"architecture of space '{self.name}': found {found or 'no genes'}, needed are {needed}")
        return genes

    def _gene_list(self, gene: str, values: object, length: int) -> Sequence[Any]:
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != length:
            raise ArchError(
                f"gene {gene} of space '{self.name}': found {values!r}, needed is a list of {length} numbers"
            )
        return values

    def _integers(self, gene: str, values: object, largest: Sequence[int]) -> tuple[int, ...]:
        """Check a list of whole numbers, each from 0 to that of `largest`."""
        out = []
        for i, (value, most) in enumerate(zip(self._gene_list(gene, values, len(largest)), largest, strict=True)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value <= most:
                raise ArchError(f"gene {gene}[{i}] of space '{self.name}' is {value!r}, allowed: 0 to {most}")
            out.append(int(value))
        return tuple(out)

    def _must(self, fine: bool, field: str, found: object, allowed: str) -> None:
        if not fine:
            raise ConfigError(f"search space '{self.name}': {field} = {found!r}, allowed: {allowed}")


class Elastic(Space):
    """A space whose choices have an order: larger ones cost no less, and the largest are the supernet."""

    @property
    @abstractmethod
    def choices(self) -> Mapping[str, tuple[int, ...]]:
        """Number of choices of each entry of each gene, in the order in which an architecture is encoded."""

    @cached_property
    def gene_choices(self) -> Ints:
        """Number of choices of each entry of an encoded architecture."""
        return np.array([n for numbers in self.choices.values() for n in numbers], dtype=np.int64)

    def encode(self, arch: Arch) -> Ints:
        """Return the architecture as a row of a population: indices of choices, of which larger ones cost more."""
        return np.array([i for gene in self.choices for i in arch[gene]], dtype=np.int64)

    def decode(self, row: Ints) -> Arch:
        """Return the architecture that such a row means: the inverse of `encode`."""
        entries = iter(np.asarray(row).tolist())
        return self.arch({gene: [next(entries) for _ in numbers] for gene, numbers in self.choices.items()})

    def _indices(self, genes: object) -> dict[str, tuple[int, ...]]:
        """Check genes that are indices of choices."""
        given, found = self._genes(genes, tuple(self.choices)), {}
        for gene, numbers in self.choices.items():
            found[gene] = self._integers(gene, given[gene], [n - 1 for n in numbers])
        return found

    @cached_property
    def largest(self) -> Arch:
        """The largest choice of every gene: the supernet."""
        return self.decode(self.gene_choices - 1)

    @cached_property
    def smallest(self) -> Arch:
        """The smallest choice of every gene: the architecture of least cost."""
        return self.decode(0 * self.gene_choices)

    @property
    def supernet(self) -> Arch:
        """The largest architecture (see `Space.supernet`)."""
        return self.largest

    @property
    def shrinkable(self) -> tuple[int, ...]:
        """Where an encoded architecture has what is made smaller step by step: every gene by default."""
        return tuple(range(len(self.gene_choices)))

    def sample(self, rng: np.random.Generator) -> Arch:
        """Draw every gene independently and uniformly."""
        return self.decode(rng.integers(0, self.gene_choices))

    def movable(self, arch: Arch) -> Iterable[Channels]:
        """Return the channels of a network that can be put in another order; none where a space does not say."""
        return ()


def _listed(value: Any) -> Any:
    """Return a value of a space's field as JSON has it: tuples as lists, the fields of dataclasses as objects."""
    if isinstance(value, tuple):
        return [_listed(item) for item in value]
    if is_dataclass(value):
        return {item.name: _listed(getattr(value, item.name)) for item in fields(value)}
    return value


def _within(tensor: str, part: str) -> bool:
    return tensor == part or tensor.startswith(f"{part}.")
