"""Federated batch statistics: clients send sums and sums of squares of every channel, the server combines them exactly.

A subnet's batch statistics are not its supernet's (once-for-all, ICLR 2020), and no server image is needed to find
them. With the mean and the mean square over an image's positions, x̄ and x̄², and n images, a client sends Σ x̄, Σ x̄²
and n; the statistics of all images together are ``Σ x̄/Σ n`` and ``Σ x̄²/Σ n − (Σ x̄/Σ n)²``.
"""

from __future__ import annotations

from collections.abc import Mapping

MEAN, VARIANCE = ".running_mean", ".running_var"
SUM, SQUARES = ".sum", ".squares"

Shapes = Mapping[str, tuple[int, ...]]


def moment_shapes(model: Shapes) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the moments of a model, given those of its tensors and batch statistics."""
    sums = {f"{name.removesuffix(MEAN)}{SUM}": shape for name, shape in model.items() if name.endswith(MEAN)}
    squares = {f"{name.removesuffix(VARIANCE)}{SQUARES}": s for name, s in model.items() if name.endswith(VARIANCE)}
    return sums | squares
