"""What happens to a batch between the data set and the network: shuffling, augmentation, normalisation.

Everything works on whole batches of 8-bit images without a loop over images, and keeps the channels-last layout in
which `sources` stores them: a row of an image is then one run of bytes, so that a crop copies runs and a normalised
row is one multiply-add. Images may lie in any layout and on any device; the results are channels-last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fednas_core.base.errors import ConfigError, DataError

RECIPES = ("none", "crop", "crop-flip", "crop-flip-cutout")
"""Names of the augmentation recipes, each doing more than the one before."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Turns 8-bit images into the network's input: ``(x / 255 − mean) / std`` for each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Return uint8 images (n, channels, height, width) as float32 of the same shape, channels-last.

        Raises `DataError` if the images are not uint8 or have another number of channels.
        """
        rows = _rows(x)
        if x.shape[1] != len(self.mean):
            raise DataError(f"images have {x.shape[1]} channels, the preprocessing is for {len(self.mean)}")
        scale, shift = _affine(self, x.shape[3], x.device)
        return _images(torch.addcmul(shift, rows.float(), scale), x.shape)


def augment(x: Tensor, recipe: str, generator: torch.Generator, mean: Sequence[float]) -> Tensor:
    """Return uint8 images (n, channels, size, size), each altered at random by its own draw from `generator`.

    crop: a window of the image after a black border of ``size // 8`` pixels (4 at 32) is put around it; flip: mirrored
    left to right with probability ½; cutout (DeVries and Taylor 2017, arXiv:1708.04552): a square of half the side (16
    at 32), its centre on any pixel and what lies outside cut off, is painted in the colour `mean` (a number from 0 to 1
    for each channel). With the mean of the preprocessing that is 0 after normalising, as published, to within half a
    grey level. "none" returns `x` itself and draws nothing. Raises `ConfigError` for another recipe, `DataError` for
    images that are not uint8.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"augmentation '{recipe}': allowed are {', '.join(RECIPES)}")
    if recipe == "none":
        return x
    rows = _crop(_rows(x), x.shape, flip="flip" in recipe, generator=generator)
    if "cutout" in recipe:
        rows = _cutout(rows, x.shape, generator, mean)
    return _images(rows, x.shape)


def batches(n: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the numbers 0 … n − 1 in random order as int64 tensors of `batch` elements, the last one shorter.

    A last batch of a single example would leave batch norm without a variance: it joins the batch before it. A single
    example is left only where nothing else is possible: n = 1, or batch = 1. Raises `DataError` if n < 1.
    """
    if n < 1:
        raise DataError("there are no training examples to make batches of")
    parts = list(torch.split(torch.randperm(n, generator=generator, device=generator.device), batch))
    if batch > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    yield from parts


def _rows(x: Tensor) -> Tensor:
    """Return the images (n, c, h, w) as rows (n, h, w · c); no copy if they lie channels-last."""
    if x.dtype != torch.uint8 or x.ndim != 4:
        raise DataError(f"images are {x.dtype} {tuple(x.shape)}: expected uint8 (n, channels, height, width)")
    return x.permute(0, 2, 3, 1).contiguous().flatten(2)


def _images(rows: Tensor, shape: torch.Size) -> Tensor:
    """Return rows (n, h, w · c) as the images (n, c, h, w), channels-last, without a copy."""
    n, c, h, w = shape
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)


@lru_cache(maxsize=64)
def _affine(preprocessing: Preprocessing, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return scale and shift of one row (width · channels,)."""
    mean, std = torch.tensor(preprocessing.mean, device=device), torch.tensor(preprocessing.std, device=device)
    return (1 / (255 * std)).repeat(width), (-mean / std).repeat(width)


def _crop(rows: Tensor, shape: torch.Size, flip: bool, generator: torch.Generator) -> Tensor:
    """Return a window of each bordered image, or of its mirror image; rows are (n, h, w · c)."""
    n, c, h, w = shape
    border = h // 8
    bordered = F.pad(rows, (border * c, border * c, border, border))
    height, width = h + 2 * border, w + 2 * border
    image = torch.arange(n, device=rows.device)
    top, left = _uniform(2 * border + 1, n, generator, rows), _uniform(2 * border + 1, n, generator, rows)
    if flip:
        mirrored = bordered.view(n, height, width, c).flip(2).view_as(bordered)
        bordered = torch.cat((bordered, mirrored))
        image = image + n * _uniform(2, n, generator, rows)
    line = (image * height + top)[:, None] + torch.arange(h, device=rows.device)
    start = (line * width + left[:, None]) * c
    return bordered.flatten().unfold(0, w * c, 1).index_select(0, start.flatten()).view(n, h, w * c)


def _cutout(rows: Tensor, shape: torch.Size, generator: torch.Generator, mean: Sequence[float]) -> Tensor:
    """Return rows (n, h, w · c) with a square of half the side in each image painted in the colour `mean`."""
    n, c, h, w = shape
    inside = []
    for side in (h, w):
        offset = torch.arange(side, device=rows.device) - _uniform(side, n, generator, rows)[:, None]
        inside.append(((offset >= -(h // 4)) & (offset < h // 4)).to(torch.uint8))
    colour = torch.tensor([round(255 * value) for value in mean], dtype=torch.uint8, device=rows.device).repeat(w)
    hole = inside[0][:, :, None] * inside[1].repeat_interleave(c, dim=1)[:, None, :]
    return rows + hole * (colour - rows)  # modulo 256, hence exact: `colour` where hole is 1


def _uniform(high: int, n: int, generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randint(high, (n,), generator=generator, device=generator.device).to(like.device)
