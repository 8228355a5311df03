"""Small chains that the tests of several rooms need."""

from __future__ import annotations

from typing import Any

from fednas_core.spaces.chain import ChainSpace
from fednas_core.spaces.chainspec import Unit

PLAIN = (
    Unit("conv", 16),
    Unit("conv", 24, pool=True),
    Unit("conv", 16, 5),
    Unit("conv", 24, stride=2),
    Unit("conv", 8),
    Unit("conv", 16, 1, pool=True),
)
RESIDUAL = (
    Unit("conv", 16),
    Unit("residual", 16),
    Unit("residual", 24),
    Unit("residual", 16, stride=2),
    Unit("residual", 16, pool=True),
)
SEPARABLE = (
    Unit("conv", 16, stride=2),
    Unit("separable", 24),
    Unit("separable", 16, 5, pool=True),
    Unit("separable", 16, stride=2),
    Unit("separable", 24),
)
MIXED = (Unit("conv", 16), Unit("residual", 16), Unit("separable", 24), Unit("conv", 24), Unit("residual", 24))
CHAINS = {"plain": PLAIN, "residual": RESIDUAL, "separable": SEPARABLE, "mixed": MIXED}


def toy_chain(units: str = "plain", **changes: Any) -> ChainSpace:
    """One of `CHAINS` for 9×9 images of two channels and three classes."""
    values: dict[str, Any] = {"name": "toy", "units": CHAINS[units], "image_size": 9, "in_channels": 2, "classes": 3}
    return ChainSpace(**{**values, **changes})
