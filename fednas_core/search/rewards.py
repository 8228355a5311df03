"""What a compressed network is worth: the thresholded reward of DDC, and that of N2N to compare it with.

DDC: Pahwa et al., *Data-Driven Compression of Convolutional Neural Networks*, arXiv 1911.12740. N2N: Ashok et al.,
*N2N Learning*, ICLR 2018. Ratios are those of a student to its teacher.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

INFEASIBLE = -1.0
"""The reward of a student that cannot be built, or is not smaller than its teacher."""
SLOPE = 15.0
"""How sharply DDC's reward falls at a threshold."""
PATIENCE = 15
"""Iterations of N2N over which a violated constraint comes to count in full."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The ratios at which a part of DDC's reward is one half; 0.9, 0.3 and 0.6 in all published experiments."""

    accuracy: float = 0.9
    latency: float = 0.3
    params: float = 0.6


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward and its three parts, each from 0 (bad) to 1."""

    total: float
    accuracy: float
    latency: float
    params: float


def ddc_reward(
    accuracy_ratio: float,
    latency_ratio: float,
    params_ratio: float,
    thresholds: Thresholds = Thresholds(),
) -> Reward:
    """Return R = R₁·R₂·R₃ for a student's accuracy, measured latency and parameters, each by the teacher's.

    ``R₁ = 1 − 1/(1 + exp(15·(A/A_T − A_th)))``, ``R₂ = 1/(1 + exp(15·(T/T_T − T_th)))`` and R₃ likewise for parameters.
    The total is `INFEASIBLE` unless the student has fewer parameters than its teacher. Any ratio is allowed; one that
    is not a number (a teacher of accuracy 0) makes the student infeasible.
    """
    accuracy = _sigmoid(SLOPE * (accuracy_ratio - thresholds.accuracy))
    latency = _sigmoid(SLOPE * (thresholds.latency - latency_ratio))
    params = _sigmoid(SLOPE * (thresholds.params - params_ratio))
    total = accuracy * latency * params
    feasible = params_ratio < 1 and not math.isnan(total)
    return Reward(total if feasible else INFEASIBLE, accuracy, latency, params)


def n2n_reward(accuracy_ratio: float, compression: float, violated: bool = False, iteration: int = 0) -> float:
    """Return N2N's reward ``R = A/A_T · C·(2 − C)`` with the compression C = 1 − params/params_T, at most 1.

    Where a constraint is violated it is ``(ε − 1) + ε·R`` with ``ε = max(0, 1 − e/15)⁴`` in iteration e from 0: the
    published code clips after the power, so that its ε grows again beyond iteration 15.
    """
    reward = accuracy_ratio * compression * (2 - compression)
    if not violated:
        return reward
    epsilon = max(0.0, 1 - iteration / PATIENCE) ** 4
    return (epsilon - 1) + epsilon * reward


def _sigmoid(x: float) -> float:
    """Return 1/(1 + exp(−x)) without overflow, also at ±∞."""
    small = math.exp(-abs(x))
    return 1 / (1 + small) if x >= 0 else small / (1 + small)
