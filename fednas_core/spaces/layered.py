"""What every space of layered networks derives from one description: plan, private part, cost, samples, JSON."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fednas_core.base.errors import ArchError, ConfigError
from fednas_core.base.values import Arch, Cost, NormKind, Plan
from fednas_core.spaces.layers import Layer, cost_of, plan_of

if TYPE_CHECKING:
    from typing import Self


Ints = np.ndarray[Any, np.dtype[np.int64]]


class LayeredSpace(ABC):
    """A base of frozen dataclasses that are a `SearchSpace`: they say which layers an architecture has.

    `personal` are the parts of a network that stay on the client (FedPer, arXiv 1912.00818, section 3): names of
    modules, e.g. ``head`` or ``stages.3``. Their tensors are in `private`, all others in `plan`.
    """

    kind: ClassVar[str]
    name: str
    image_size: int
    in_channels: int
    classes: int
    norm: NormKind
    personal: tuple[str, ...]

    # -- what a space must say -------------------------------------------------------------------------------------

    @abstractmethod
    def layers(self, arch: Arch) -> Iterable[Layer]:
        """Return every layer of an architecture in order of execution."""

    @property
    @abstractmethod
    def blocks(self) -> tuple[str, ...]:
        """The names of the largest network's blocks in order of execution."""

    @property
    @abstractmethod
    def gene_choices(self) -> Ints:
        """Number of choices of each entry of an encoded architecture."""

    @abstractmethod
    def decode(self, row: Ints) -> Arch:
        """See `SearchSpace.decode`."""

    # -- what follows from it --------------------------------------------------------------------------------------

    @cached_property
    def largest(self) -> Arch:
        """The largest choice of every gene."""
        return self.decode(self.gene_choices - 1)

    @cached_property
    def smallest(self) -> Arch:
        """The smallest choice of every gene."""
        return self.decode(0 * self.gene_choices)

    def plan(self, arch: Arch) -> Plan:
        """Return the plan of what is shared (see `SearchSpace.plan`)."""
        return {name: region for name, region in plan_of(self.layers(arch)).items() if not self._stays(name)}

    def private(self, arch: Arch) -> Plan:
        """Return the plan of what stays on the client (see `SearchSpace.private`)."""
        if not self.personal:
            return {}
        return {name: region for name, region in plan_of(self.layers(arch)).items() if self._stays(name)}

    def whole(self, arch: Arch) -> Plan:
        """Return the plan of all that a network consists of: shared and private (see `SearchSpace.whole`)."""
        return {**self.plan(arch), **self.private(arch)}

    def cost(self, arch: Arch) -> Cost:
        """Return the cost of the whole network (see `SearchSpace.cost`)."""
        return cost_of(self.layers(arch))

    def sample(self, rng: np.random.Generator) -> Arch:
        """Draw every gene independently and uniformly."""
        return self.decode(rng.integers(0, self.gene_choices))

    def for_data(self, image_size: int, in_channels: int, classes: int) -> Self:
        """Return this space for images of another size, channel count or number of classes."""
        return self._changed(image_size=image_size, in_channels=in_channels, classes=classes)

    def with_norm(self, norm: NormKind) -> Self:
        """Return this space with another normalisation."""
        return self._changed(norm=norm)

    def with_personal(self, names: Sequence[str]) -> Self:
        """Return this space with these parts private; raise `ConfigError` for a name that no tensor's begins with."""
        changed = self._changed(personal=tuple(names))
        tensors = plan_of(self.layers(self.largest))
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

    # -- checking genes --------------------------------------------------------------------------------------------

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

    # -- checking fields -------------------------------------------------------------------------------------------

    def _must(self, fine: bool, field: str, found: object, allowed: str) -> None:
        if not fine:
            raise ConfigError(f"search space '{self.name}': {field} = {found!r}, allowed: {allowed}")

    def _check_images(self) -> None:
        """Refuse images or classes that there cannot be."""
        for field, least in (("in_channels", 1), ("classes", 2), ("image_size", 1)):
            found = getattr(self, field)
            self._must(found >= least, field, found, f"an integer of at least {least}")

    def _check_norm(self, size: int) -> None:
        """Refuse a normalisation that has nothing to go by in feature maps of `size` × `size` pixels, the smallest."""
        if self.norm == "parametric-sample" and size < 2:
            raise ConfigError(
                f"search space '{self.name}': norm = 'parametric-sample' takes the spread of a channel from one image, "
                f"and with images of {self.image_size} pixels the last feature maps have a single one; use larger "
                "images, fewer strides or another normalisation, e.g. parametric"
            )


def _listed(value: Any) -> Any:
    """Return a value of a space's field as JSON has it: tuples as lists, the fields of dataclasses as objects."""
    if isinstance(value, tuple):
        return [_listed(item) for item in value]
    if is_dataclass(value):
        return {item.name: _listed(getattr(value, item.name)) for item in fields(value)}
    return value


def _within(tensor: str, part: str) -> bool:
    return tensor == part or tensor.startswith(f"{part}.")
