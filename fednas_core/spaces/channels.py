"""Channels that can be put in another order: narrower networks own the first ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from fednas_core.spaces.layers import CHANNELS_PER_GROUP, Conv, Norm

Side = tuple[str, int]
"""A dimension of a tensor."""


@dataclass
class Channels:
    """Channels that keep one order: the sides that they make up, and those of the weights that read them.

    `gene` is the gene that says how many of them a network has; `group` of them move together. `filters` are the
    weights of which each makes one channel, where these are told from other sides.
    """

    gene: str
    made: list[Side] = field(default_factory=list)
    read: list[Side] = field(default_factory=list)
    group: int = 1
    filters: list[str] = field(default_factory=list)

    @property
    def sides(self) -> list[Side]:
        """All sides that have the channels' order."""
        return self.made + self.read

    def normed(self, norm: Norm | None) -> None:
        """Add the vectors of a normalisation."""
        if norm is not None:
            self.made += [(vector, 0) for vector in norm.regions()]
            self.group = CHANNELS_PER_GROUP if norm.kind == "group" else 1

    def filtered(self, conv: Conv, norm: Norm) -> None:
        """Add the filters of a convolution, and its normalisation."""
        self.made.append((f"{conv.name}.weight", 0))
        self.filters.append(f"{conv.name}.weight")
        self.normed(norm)
