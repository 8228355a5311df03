"""Layers: of each kind the description, its module, its regions and its cost in one file."""

from fednas_core.spaces.layers.base import Charge, Layer, Make, centre, cost_of, first, own_module, plan_of, stride_at
from fednas_core.spaces.layers.conv import Conv
from fednas_core.spaces.layers.depthwise import Depthwise
from fednas_core.spaces.layers.linear import Linear
from fednas_core.spaces.layers.norm import CHANNELS_PER_GROUP, NORMS, VECTORS, Norm
from fednas_core.spaces.layers.squeeze import SqueezeExcite

__all__ = [
    "CHANNELS_PER_GROUP", "NORMS", "VECTORS", "Charge", "Conv", "Depthwise", "Layer", "Linear", "Make", "Norm",
    "SqueezeExcite", "centre", "cost_of", "first", "own_module", "plan_of", "stride_at",
]  # fmt: skip
