"""The values that everything is made of: `Arch`, `Plan` and `Cost`.

An `Arch` says *which* network, a `Plan` says *where* each of its tensors lies in the supernet, a `Cost` says what it
takes to run. None of them is ever "set active" on a module.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fednas_core.base.errors import ArchError

if TYPE_CHECKING:
    from torch import Tensor

ClientId = str
"""A client's stable name: its partition in simulation, its own name in deployment; never a node id."""
TRAINING_FACTOR = 3
"""MACs of training one image, in forward passes: one forward, two backward."""

Gene = int | float
NormKind = Literal["none", "group", "batch", "parametric", "parametric-sample"]
"""How a network normalises: not, in groups of channels, over the batch, or parametric (FedSup, arXiv 2206.01366)."""
Region = tuple[slice, ...]
"""The part of a supernet tensor that a subnet's tensor of the same name owns: one slice a dimension."""
Plan = Mapping[str, Region]
"""For each tensor of a subnet its region; a tensor that the subnet lacks is absent."""


@dataclass(frozen=True, slots=True)
class Arch:
    """One architecture of a search space: named tuples of genes, in the space's canonical form.

    Make one with ``space.arch(...)``, which checks it and brings it into canonical form, so that equal networks are
    equal values.
    """

    genes: tuple[tuple[str, tuple[Gene, ...]], ...]

    def __getitem__(self, name: str) -> tuple[Gene, ...]:
        for key, values in self.genes:
            if key == name:
                return values
        raise ArchError(f"architecture has no gene '{name}'; it has {', '.join(key for key, _ in self.genes)}")

    def to_json(self) -> dict[str, list[Gene]]:
        """Return the genes as a JSON object of lists, e.g. ``{"d": [0, 1], "e": [0.1, …], "w": [9, 4, 4]}``."""
        return {key: list(values) for key, values in self.genes}

    def __str__(self) -> str:
        return json.dumps(self.to_json(), separators=(",", ":"))


@dataclass(frozen=True, slots=True, order=True)
class Cost:
    """What an architecture costs: MACs of one forward pass of one image, parameters, and bytes of its tensors.

    Cheaper is less: fewer MACs, of equally many fewer parameters.
    """

    macs: int
    params: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the three numbers as a JSON object."""
        return {"macs": self.macs, "params": self.params, "bytes": self.bytes}


@dataclass(frozen=True, slots=True)
class State:
    """A method's state as a value: named tensors and a JSON object. It is what a checkpoint holds."""

    tensors: Mapping[str, Tensor]
    data: Mapping[str, Any] = field(default_factory=dict)


def region_shape(region: Region) -> tuple[int, ...]:
    """Return the shape that a region cuts out of its supernet tensor."""
    return tuple(int(part.stop) - int(part.start) for part in region)
