"""Tiers of devices, by the parameters of their networks: what setting ``sample.tiers`` names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fednas_core.base.errors import ConfigError
from fednas_core.base.values import Arch

if TYPE_CHECKING:
    from fednas_core.spaces.space import Elastic

BREADTH = 0.75
"""Share of a tier's largest size that its devices have room for; of a tier named by one share also the least size."""
FEW = 5
"""Of fewer clients a tier's networks learn little beyond what they share with those of other tiers."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A class of devices: its name in the settings, the least and the most parameters of its networks, its only one."""

    name: str
    least: float
    most: float
    only: Arch | None = None

    @property
    def entry(self) -> float:
        """The parameters that a device must have room for to belong to it."""
        return max(self.least, BREADTH * self.most)


def parse_tiers(text: str, space: Elastic) -> tuple[Tier, ...]:
    """Return the tiers of setting ``sample.tiers``: min, max, shares of the supernet's parameters and ranges of them.

    ``30%`` means networks of `BREADTH` of that to all of it, ``10%-30%`` those in between. A share below that of the
    smallest network means the smallest network.
    """
    least, most = (space.cost(arch).params for arch in (space.smallest, space.largest))
    ends = {"min": Tier("min", least, least, space.smallest), "max": Tier("max", most, most, space.largest)}
    number = r"([0-9]+(?:\.[0-9]+)?)%"
    tiers = []
    for name in map(str.strip, text.split(",")):
        found = re.fullmatch(rf"(?:{number}\s*-\s*)?{number}", name)
        high = float(found[2]) / 100 if found else 0.0
        low = float(found[1]) / 100 if found and found[1] else BREADTH * high
        if name not in ends and not (low <= high <= 1 and high > 0):
            raise ConfigError(
                f"setting 'sample.tiers' = {text!r}: tier {name!r}: allowed are min, max, shares of the supernet's "
                "parameters above 0% and up to 100%, and ranges of them from the lower to the higher share, e.g. "
                "min,0%-30%,70%,max"
            )
        small = Tier(name, least, least, space.smallest)
        tiers.append(ends.get(name) or (Tier(name, most * low, most * high) if most * high > least else small))
    return tuple(tiers)
