"""Federated batch statistics: clients send sums and sums of squares of every channel, the server combines them exactly.

A subnet's batch statistics are not its supernet's (once-for-all, ICLR 2020), and no server image is needed to find
them. Both are taken about a mean m that the server has sent, so that nothing cancels where a channel's mean is large
against its deviation: of each image the mean over its positions of x − m and of (x − m)², summed over images as S and
Q. With n images the statistics of all images together are, whoever has which,

    mean = m + Σ S / Σ n,    variance = Σ Q / Σ n − (Σ S / Σ n)²    (that of the population)

Each sum travels as two float32 values, the nearest one and what is left of it: 48 bits. With 24 the means of early
layers would come out a last bit apart, which a dozen layers later is more than a millionth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from fednas_core.base.errors import ReplyError

MEAN, VARIANCE = ".running_mean", ".running_var"
SUM, SQUARES = ".sum", ".squares"

EPSILON = 1e-5
"""What batch norm adds to a variance."""

ROUNDING = 1e-9
"""By what share S² may exceed n·Q, which no images make it do: of what is sent, 48 bits are right."""
LARGEST = torch.finfo(torch.float32).max
TINY = torch.finfo(torch.float32).tiny
"""What a float32 may be rounded to nothing from."""
Shapes = Mapping[str, tuple[int, ...]]
Hook = Callable[[nn.Module, tuple[Tensor, ...]], None]


def moment_shapes(model: Shapes) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the moments of a model, (2, channels), given those of its tensors and statistics."""
    return {f"{norm}{kind}": (2, *model[f"{norm}{MEAN}"]) for kind in (SUM, SQUARES) for norm in norms_of(model)}


def norms_of(model: Iterable[str]) -> list[str]:
    """Return the names of the batch norms of a model, given those of its tensors and statistics."""
    return [name.removesuffix(MEAN) for name in model if name.endswith(MEAN)]


@torch.inference_mode()
def moments(module: nn.Module, batches: Iterable[Tensor]) -> tuple[dict[str, Tensor], int]:
    """Return S and Q of the inputs of every batch norm, as float32 pairs on the CPU, and the number of images.

    `batches` are normalised float32 images (n, channels, size, size), each seen once. The network, now in evaluation
    mode, normalises with the statistics that it holds, and about those means the moments are taken; so an image brings
    the same in any batch. Sums are in float64.
    """
    norms = {name: child for name, child in module.eval().named_modules() if isinstance(child, nn.BatchNorm2d)}
    device = next(module.parameters()).device
    totals = {name: torch.zeros(2, n.num_features, dtype=torch.float64, device=device) for name, n in norms.items()}
    images = 0
    with _hooked(norms, {name: partial(_add_to, total) for name, total in totals.items()}):
        for x in batches:
            module(x.to(device, memory_format=torch.channels_last))
            images += len(x)
    found = {f"{name}{kind}": _split(totals[name][i]) for i, kind in enumerate((SUM, SQUARES)) for name in norms}
    return found, images


def whole(moment: Tensor) -> Tensor:
    """Return a moment as it is meant, float64 (channels,), of its two parts."""
    return moment.double().sum(0)


def check_moments(found: Mapping[str, Tensor], images: int) -> None:
    """Raise `ReplyError`, naming the norm, unless a number of images can have made these moments."""
    for norm in [name.removesuffix(SUM) for name in found if name.endswith(SUM)]:
        sums, squares = whole(found[f"{norm}{SUM}"]), whole(found[f"{norm}{SQUARES}"])
        if bool((squares > LARGEST).any()):
            _refuse(norm, f"a sum of squares of {float(squares.max()):.3g}", f"up to {LARGEST:.3g}")
        if bool((squares < 0).any()):
            _refuse(norm, f"a sum of squares of {float(squares.min()):.3g}", "0 and more")
        if bool((sums**2 > images * (squares * (1 + ROUNDING) + TINY)).any()):
            _refuse(norm, "sums larger than their sums of squares permit", "what images make")


def _refuse(norm: str, found: str, allowed: str) -> None:
    raise ReplyError(f"moments of '{norm}': found {found}, allowed {allowed}")


def distance(found: Mapping[str, Tensor], sent: Mapping[str, Tensor], images: int) -> float:
    """Return how far an image is from the means that were sent, in their standard deviations (root mean square)."""
    far = []
    for norm in norms_of(sent):
        squares = whole(found[f"{norm}{SQUARES}"])
        far.append(squares / (images * (sent[f"{norm}{VARIANCE}"].double() + EPSILON)))
    return float(torch.cat(far).mean().sqrt())


def statistics(before: Mapping[str, Tensor], answers: Iterable[tuple[Mapping[str, Tensor], int]]) -> dict[str, Tensor]:
    """Return the batch statistics, float32, of all images of `answers`, which are moments and numbers of images.

    `before` holds the statistics about whose means these moments are. At least one image is needed; sums are in
    float64, in the order of the answers.
    """
    totals, images = dict[str, Tensor](), 0
    for found, count in answers:
        images += count
        for name, tensor in found.items():
            totals[name] = totals[name] + whole(tensor) if name in totals else whole(tensor)
    after = {}
    for norm in norms_of(before):
        shift, squares = totals[f"{norm}{SUM}"] / images, totals[f"{norm}{SQUARES}"] / images
        after[f"{norm}{MEAN}"] = (before[f"{norm}{MEAN}"].double() + shift).float()
        after[f"{norm}{VARIANCE}"] = (squares - shift**2).clamp_(min=0).float()
    return after


@torch.inference_mode()
def foreseen(module: nn.Module, measured: Mapping[str, Tensor], guides: Tensor) -> dict[str, Tensor]:
    """Return `measured` statistics as they will be once the layers before have theirs, and give them to `module`.

    `measured` were found with `module` as it is, so each norm answers to what those before it are about to lose: all
    would correct the same thing, some layers later many times over. What `guides`, some normalised images (n, channels,
    size, size), see of that change at a norm is applied to its statistics; by how much the guides themselves differ
    from the images that were measured does not matter, and where nothing changes before a norm `measured` stays.
    """
    norms = {name: child for name, child in module.eval().named_modules() if isinstance(child, nn.BatchNorm2d)}
    before, target = dict[str, tuple[Tensor, Tensor]](), next(module.parameters()).device

    def look(name: str, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        before[name] = _mean_and_variance(inputs[0])

    def correct(name: str, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (old, spread), (new, wide) = before[name], _mean_and_variance(inputs[0])
        ratio = (wide + EPSILON) / (spread + EPSILON)
        mean, variance = (measured[f"{name}{kind}"].to(target).double() for kind in (MEAN, VARIANCE))
        norm.get_buffer("running_mean").copy_(new + (mean - old) * ratio.sqrt())
        norm.get_buffer("running_var").copy_(variance * ratio)

    for step in (look, correct):
        with _hooked(norms, {name: partial(step, name) for name in norms}):
            module(guides.to(target, memory_format=torch.channels_last))
    state = module.state_dict()
    return {name: state[name].cpu() for name in measured}


@contextmanager
def _hooked(norms: Mapping[str, nn.Module], hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Call each norm's hook with the norm and its inputs whenever they reach it."""
    handles = [norm.register_forward_pre_hook(hooks[name]) for name, norm in norms.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_to(total: Tensor, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Add the moments of a batch norm's input to `total`: S in row 0, Q in row 1."""
    x, mean = inputs[0].movedim(1, -1), norm.get_buffer("running_mean")
    about = x.flatten(0, -2).double() - mean
    positions = x.shape[1:-1].numel()
    total[0] += about.sum(0) / positions
    total[1] += about.square_().sum(0) / positions


def _mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each channel of (n, channels, s, s), float64 (channels,)."""
    values = x.movedim(1, -1).flatten(0, -2).double()
    return values.mean(0), values.var(0, unbiased=False)


def _split(total: Tensor) -> Tensor:
    """Return float64 values as the nearest float32 ones and, below them, what is left."""
    nearest = total.float()
    return torch.stack((nearest, (total - nearest).float())).cpu()
