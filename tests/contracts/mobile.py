"""A small mobile space that the tests of several rooms need."""

from __future__ import annotations

from typing import Any

from fednas_core.spaces.mobilenet import MobileNetSpace
from fednas_core.spaces.mobilespec import Stage

STAGES = (
    Stage((8, 16), (1, 2), 1, (3, 5), (1.0, 2.0)),
    Stage((16, 24), (1, 2), 2, (3, 5, 7), (2.0, 3.0), "h-swish", True),
)


def toy_mobile(**changes: Any) -> MobileNetSpace:
    """Two stages of one or two blocks for 9×9 images of two channels and three classes; resolutions 6 and 9."""
    values: dict[str, Any] = {
        "name": "toy",
        "stem": 16,
        "stages": STAGES,
        "resolutions": (6, 9),
        "image_size": 9,
        "in_channels": 2,
        "classes": 3,
    }
    return MobileNetSpace(**{**values, **changes})
