"""Federated batch statistics: clients send sums and sums of squares of every channel, the server combines them exactly.

A subnet's batch statistics are not its supernet's (once-for-all, ICLR 2020), and no server image is needed to find
them. Both are taken about a mean m that the server has sent, so that nothing cancels where a channel's mean is large
against its deviation: of each image the mean over its positions of x − m and of (x − m)², summed over images as S and
Q. With n images the statistics of all images together are, whoever has which,

    mean = m + Σ S / Σ n,    variance = Σ Q / Σ n − (Σ S / Σ n)²    (that of the population)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

MEAN, VARIANCE = ".running_mean", ".running_var"
SUM, SQUARES = ".sum", ".squares"
EPSILON = 1e-5
"""What batch norm adds to a variance."""

Shapes = Mapping[str, tuple[int, ...]]


def moment_shapes(model: Shapes) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the moments of a model, given those of its tensors and batch statistics."""
    sums = {f"{name.removesuffix(MEAN)}{SUM}": shape for name, shape in model.items() if name.endswith(MEAN)}
    squares = {f"{name.removesuffix(VARIANCE)}{SQUARES}": s for name, s in model.items() if name.endswith(VARIANCE)}
    return sums | squares


def norms_of(model: Iterable[str]) -> list[str]:
    """Return the names of the batch norms of a model, given those of its tensors and statistics."""
    return [name.removesuffix(MEAN) for name in model if name.endswith(MEAN)]


@torch.inference_mode()
def moments(module: nn.Module, batches: Iterable[Tensor]) -> tuple[dict[str, Tensor], int]:
    """Return S and Q of the inputs of every batch norm, float32 on the CPU, and the number of images.

    `batches` are normalised float32 images (n, channels, size, size), each seen once. The network normalises with the
    statistics that it holds, and about those means the moments are taken; so an image brings the same in any batch.
    Sums are in float64.
    """
    norms = {name: child for name, child in module.eval().named_modules() if isinstance(child, nn.BatchNorm2d)}
    device = next(module.parameters()).device
    zeros = {
        name: torch.zeros(2, norm.num_features, dtype=torch.float64, device=device) for name, norm in norms.items()
    }
    hooks = [norm.register_forward_pre_hook(_adding_to(zeros[name])) for name, norm in norms.items()]
    images = 0
    try:
        for x in batches:
            module(x.to(device, memory_format=torch.channels_last))
            images += len(x)
    finally:
        for hook in hooks:
            hook.remove()
    found = {name: total.float().cpu() for name, total in zeros.items()}
    sums = {f"{name}{SUM}": total[0] for name, total in found.items()}
    return sums | {f"{name}{SQUARES}": total[1] for name, total in found.items()}, images


def statistics(before: Mapping[str, Tensor], answers: Iterable[tuple[Mapping[str, Tensor], int]]) -> dict[str, Tensor]:
    """Return the batch statistics, float32, of all images of `answers`, which are moments and numbers of images.

    `before` holds the statistics about whose means these moments are. At least one image is needed; sums are in
    float64, in the order of the answers.
    """
    totals, images = dict[str, Tensor](), 0
    for found, count in answers:
        images += count
        for name, tensor in found.items():
            totals[name] = totals[name] + tensor.double() if name in totals else tensor.double()
    after = {}
    for norm in norms_of(before):
        shift, squares = totals[f"{norm}{SUM}"] / images, totals[f"{norm}{SQUARES}"] / images
        after[f"{norm}{MEAN}"] = (before[f"{norm}{MEAN}"].double() + shift).float()
        after[f"{norm}{VARIANCE}"] = (squares - shift**2).clamp_(min=0).float()
    return after


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Return how far the statistics `after` are from those `before`, at most over all channels.

    Variances are compared as batch norm uses them, `EPSILON` added, as a share of those before; means as a share of the
    root mean square of what they are the mean of.
    """
    furthest = 0.0
    for norm in norms_of(after):
        (mean, spread), (new, wide) = (
            (found[f"{norm}{MEAN}"].double(), found[f"{norm}{VARIANCE}"].double() + EPSILON)
            for found in (before, after)
        )
        steps, shares = (new - mean).abs() / (mean**2 + spread).sqrt(), (wide - spread).abs() / spread
        furthest = max(furthest, float(steps.max()), float(shares.max()))
    return furthest


def _adding_to(total: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Return a hook that adds the moments of a batch norm's input to `total`: S in row 0, Q in row 1."""

    def hook(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x, mean = inputs[0].movedim(1, -1), norm.get_buffer("running_mean")
        about = x.flatten(0, -2).double() - mean
        positions = x.shape[1:-1].numel()
        total[0] += about.sum(0) / positions
        total[1] += about.square_().sum(0) / positions

    return hook
