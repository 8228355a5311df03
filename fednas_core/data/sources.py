"""Which images: the named data sets and users' own, as 8-bit tensors kept in memory.

Images lie channels-last in memory (their shape is (n, channels, size, size) all the same): that is how files hold
them, how augmentation is fast and how convolutions want them.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fednas_core.base.config import DataConfig
from fednas_core.base.errors import DataError
from fednas_core.base.paths import expanded
from fednas_core.base.seeding import stream
from fednas_core.data import files
from fednas_core.data.files import Arrays, read_folder, read_npz, shown

CACHE = "~/.cache/fednas"
"""Where data sets of torchvision are kept unless `DataConfig.path` says otherwise."""

STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "digits": ((0.3053,), (0.3760,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
}
"""Published mean and standard deviation of each channel (pixels from 0 to 1) of the public data sets.

Users' own images get 0.5 and 0.25: statistics of theirs would be pixels of clients that the server must not look at.
"""

OWN = ("folder", "npz")
"""Sources of users' own images."""
PART = 4_000_000
"""Pixels that are averaged down at once."""
TEST_SHARE = 0.2
"""Share of the images that is the test where the source has no test images."""

_TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion-mnist": "FashionMNIST"}


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """One split: `x` uint8 (n, channels, size, size), `y` int64 (n,), and who owns each example, if known, (n,)."""

    x: Tensor
    y: Tensor
    groups: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A data set; `mean` and `std` (one number a channel, pixels from 0 to 1) are those of its preprocessing.

    `origin` is the one of which it holds some classes, None if it is all there is.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: Origin | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """The data set of which a restricted one holds some classes.

    `place` (n,) says where each of its training images is in the restricted set's training split, −1 where it is not.
    """

    whole: Dataset
    place: NDArray[np.int64]

    def within(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where those of the whole's training images at sorted `positions` are that the restricted set holds."""
        found = self.place[positions]
        return found[found >= 0]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of everybody's images: all that a device which brings its own needs to know of the run's.

    `size` is the side in pixels; `mean` and `std` hold one number a channel, for pixels from 0 to 1.
    """

    name: str
    size: int
    channels: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object; `from_json` is the inverse."""
        return asdict(self)

    @staticmethod
    def from_json(told: Mapping[str, Any]) -> Facts:
        """Return the facts of such an object."""
        lists = {key: tuple(told[key]) for key in ("classes", "mean", "std")}
        return Facts(name=told["name"], size=told["size"], channels=told["channels"], **lists)


def facts(dataset: Dataset) -> Facts:
    """Return what is true of the images of a data set."""
    _, channels, size, _ = dataset.train.x.shape
    return Facts(dataset.name, size, channels, dataset.classes, dataset.mean, dataset.std)


def source_of(config: DataConfig) -> str:
    """Return which data set `config` means: by ``auto`` a file, a folder or, without a path, the digits."""
    if config.source != "auto":
        return config.source
    if not config.path:
        return "digits"
    path = expanded(config.path)
    if not path.exists():
        raise DataError(f"data.path '{shown(path)}': there is no such file or folder")
    if not path.is_dir() and path.suffix.lower() != ".npz":
        raise DataError(f"data.path '{shown(path)}' is neither a folder nor an .npz file: see docs/images.md")
    return "folder" if path.is_dir() else "npz"


def shortest_side(config: DataConfig) -> tuple[int, str]:
    """Return the shortest side of users' images in pixels, before anything is averaged down, and whose it is.

    Raises `DataError` for images that cannot be read.
    """
    path = _place(config)
    if source_of(config) == "npz":
        return read_npz(path).x_train.shape[1], f"the images in '{shown(path)}'"
    side, file = files.shortest_side(path)
    return side, f"'{shown(file)}'"


def load(config: DataConfig) -> Dataset:
    """Return the data set that `config` names. The same settings give the same object within a process.

    `examples` > 0 keeps that many training examples, equally many of each class as far as a class has them, always the
    same ones whatever the run's seed. `image_size` > 0 averages larger images down. `only` restricts what is then
    there to some of the classes. Raises `DataError`.
    """
    whole = _load(
        DataConfig(
            source=source_of(config),
            path=config.path,
            download=config.download,
            image_size=config.image_size,
            examples=config.examples,
            column=config.column if config.partition == "column" else "",
        )
    )
    return _restricted(whole, config.only) if config.only.strip() else whole


@lru_cache(maxsize=2)
def _load(config: DataConfig) -> Dataset:
    arrays = _read(config)
    if not len(arrays.y_test):
        arrays = _held_out(arrays, f"data.path '{config.path}'")
    n = len(arrays.y_train)
    if config.examples > n:
        raise DataError(f"data.examples = {config.examples}, but '{config.source}' has {n} training examples")
    groups = arrays.groups
    if config.examples:
        index = draw(arrays.y_train, config.examples, stream(0, "data.examples"), even=True)
        arrays = arrays._replace(x_train=arrays.x_train[index], y_train=arrays.y_train[index])
        groups = None if groups is None else groups[index]
    channels = arrays.x_train.shape[3]
    mean, std = STATISTICS.get(config.source, ((0.5,) * channels, (0.25,) * channels))
    return Dataset(
        name=config.source,
        train=as_images(arrays.x_train, arrays.y_train, config.image_size, groups),
        test=as_images(arrays.x_test, arrays.y_test, config.image_size),
        classes=arrays.classes,
        mean=mean,
        std=std,
    )


@lru_cache(maxsize=2)
def _restricted(whole: Dataset, only: str) -> Dataset:
    """Return the images of the classes that a list of names holds, labelled by their places in it."""
    names = tuple(dict.fromkeys(name.strip() for name in only.split(",")))
    strange = [name for name in names if name not in whole.classes]
    if strange or len(names) < 2:
        raise DataError(
            f"setting 'data.only' = {only!r}: {f'there is no class {strange[0]!r}' if strange else 'one is too few'}; "
            f"allowed are two or more of {', '.join(whole.classes[:100])}"
        )
    label = torch.full((len(whole.classes),), -1)
    label[[whole.classes.index(name) for name in names]] = torch.arange(len(names))

    def part(images: Images) -> Images:
        kept = label[images.y] >= 0
        groups = None if images.groups is None else images.groups[kept.numpy()]
        return Images(images.x[kept], label[images.y[kept]], groups)

    held = (label[whole.train.y] >= 0).numpy()
    origin = Origin(whole, np.where(held, np.cumsum(held) - 1, -1))
    return replace(whole, train=part(whole.train), test=part(whole.test), classes=names, origin=origin)


def draw(labels: NDArray[np.int64], count: int, rng: np.random.Generator, even: bool = False) -> NDArray[np.int64]:
    """Return `count` of the positions 0 … len(labels) − 1, sorted, drawn at random class by class.

    Classes keep their proportions to within one example; with `even`, each gives equally many as far as it has them.
    """
    order = rng.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels)
    rank = np.empty(len(labels))  # of an example among those of its class
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    turn = rank if even else (rank + 0.5) / sizes[labels]
    return np.sort(order[np.argsort(turn[order], kind="stable")][:count])


def _held_out(arrays: Arrays, whose: str) -> Arrays:
    """Return a data set without test images with a fixed fifth of its training images as these, class by class.

    One image of each class, drawn at random, stays to train on. Raises `DataError` if no other is there.
    """
    y, rng = arrays.y_train, stream(0, "data.test")
    order = rng.permutation(len(y))
    free = np.setdiff1d(np.arange(len(y)), order[np.unique(y[order], return_index=True)[1]], assume_unique=True)
    count = min(max(1, round(TEST_SHARE * len(y))), len(free))
    if not count:
        raise DataError(f"{whose} holds no test images, and none of its classes has two images: one could be spared")
    test = np.zeros(len(y), dtype=bool)
    test[free[draw(y[free], count, rng)]] = True
    groups = None if arrays.groups is None else arrays.groups[~test]
    return Arrays(arrays.x_train[~test], y[~test], arrays.x_train[test], y[test], arrays.classes, groups)


def _read(config: DataConfig) -> Arrays:
    if config.column and config.source != "npz":
        raise DataError(f"data.partition 'column' needs data.source 'npz'; '{config.source}' has no columns")
    if config.source == "digits":
        return _digits()
    if config.source in _TORCHVISION:
        return _torchvision(config)
    path = _place(config)
    return read_npz(path, config.column) if config.source == "npz" else read_folder(path, config.image_size)


def _place(config: DataConfig) -> Path:
    if not config.path:
        what = "the .npz file" if config.source == "npz" else "the folder that holds a folder of images for each class"
        raise DataError(f"data.source '{config.source}' needs data.path: {what}")
    return expanded(config.path)


def _digits() -> Arrays:
    """Return scikit-learn's 1,797 handwritten digits, 0 to 16 scaled to 0 to 255; a fixed fifth of them is the test.

    They are read from its file: importing scikit-learn would cost each client process most of a second.
    """
    spec = find_spec("sklearn")
    path = Path(spec.origin or "").parent / "datasets" / "data" / "digits.csv.gz" if spec else Path()
    if not path.is_file():
        raise DataError("data.source 'digits' is part of scikit-learn: install it with  pip install scikit-learn")
    rows = np.loadtxt(path, delimiter=",")
    x = np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    y = rows[:, -1].astype(np.int64)
    test = np.zeros(len(y), dtype=bool)
    test[draw(y, round(TEST_SHARE * len(y)), stream(0, "data.digits"))] = True
    return Arrays(x[~test], y[~test], x[test], y[test], tuple(str(digit) for digit in range(10)))


def _torchvision(config: DataConfig) -> Arrays:
    root = expanded(config.path or CACHE)
    try:
        return _open(config.source, root, download=False)
    except RuntimeError as error:  # torchvision's word for a data set that is absent or damaged
        if not config.download:
            raise DataError(_advice(config, root, "is not there, and data.download is false")) from error
    from filelock import FileLock  # a dependency of torch: processes that start together download once

    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{config.source}.lock"):
            return _open(config.source, root, download=True)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
        raise DataError(_advice(config, root, f"could not be downloaded ({error})")) from error


def _open(source: str, root: Path, download: bool) -> Arrays:
    from torchvision import datasets

    kind = getattr(datasets, _TORCHVISION[source])
    train, test = kind(str(root), train=True, download=download), kind(str(root), train=False, download=download)
    x_train, x_test = np.asarray(train.data, dtype=np.uint8), np.asarray(test.data, dtype=np.uint8)
    if x_train.ndim == 3:
        x_train, x_test = x_train.reshape(*x_train.shape, 1), x_test.reshape(*x_test.shape, 1)
    y_train, y_test = np.asarray(train.targets, dtype=np.int64), np.asarray(test.targets, dtype=np.int64)
    return Arrays(x_train, y_train, x_test, y_test, tuple(train.classes))


def _advice(config: DataConfig, root: Path, problem: str) -> str:
    name = _TORCHVISION[config.source]
    return (
        f"data set '{config.source}' in '{root}' {problem}. Either set data.download = true on a machine that reaches "
        f"the internet, or set data.path to a folder where torchvision.datasets.{name} finds its files, "
        'or use your own copy: data.source = "npz" and data.path = the file (x_train, y_train, x_test, y_test)'
    )


def as_images(x: NDArray[np.uint8], y: NDArray[np.int64], size: int, groups: NDArray[Any] | None = None) -> Images:
    """Return arrays (n, size, size, channels) as a split, without a copy if they are in order and the size is right."""
    images = torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)
    return Images(_shrink(images, size) if size else images, torch.from_numpy(y), groups)


def _shrink(x: Tensor, size: int) -> Tensor:
    """Return uint8 images averaged down: over whole squares where the sides divide, else bilinear, antialiased."""
    side = x.shape[-1]
    if size > side:
        raise DataError(
            f"data.image-size = {size}, but the images have {side} pixels a side: they are never enlarged; "
            f"allowed is 1 to {side}, or 0 for {side}"
        )
    if size == side:
        return x
    small = torch.empty(len(x), size, size, x.shape[1], dtype=torch.uint8).permute(0, 3, 1, 2)
    step = max(1, PART // x[0].numel())
    for start in range(0, len(x), step):  # in parts: as float32 they take four times the memory
        part = x[start : start + step].float()
        if side % size:
            part = F.interpolate(part, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        else:
            part = F.avg_pool2d(part, side // size)
        small[start : start + step] = part.round_().clamp_(0, 255)
    return small
