"""The named data sets: what they hold, how they are thinned and shrunk, and what is said when one is absent."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas_core.base.config import DataConfig
from fednas_core.base.errors import DataError
from fednas_core.data.sources import draw, load


def test_digits() -> None:
    data = load(DataConfig())
    assert data.name == "digits" and data.classes == tuple("0123456789")
    assert data.train.x.shape == (1438, 1, 8, 8) and data.test.x.shape == (359, 1, 8, 8)
    assert data.train.x.dtype == data.test.x.dtype == torch.uint8
    assert data.train.y.shape == (1438,) and data.train.y.dtype == data.test.y.dtype == torch.int64
    assert data.train.groups is None
    assert data.train.x.is_contiguous(memory_format=torch.channels_last)
    assert (int(data.train.x.min()), int(data.train.x.max())) == (0, 255)
    whole = torch.cat([data.train.y, data.test.y]).bincount()
    assert whole.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (data.test.y.bincount() - 0.2 * whole).abs().max() <= 1
    pixels = torch.cat([data.train.x, data.test.x]).double() / 255
    assert abs(float(pixels.mean()) - data.mean[0]) < 1e-3 and abs(float(pixels.std()) - data.std[0]) < 1e-3


def test_the_digits_test_set_is_fixed() -> None:
    data = load(DataConfig())
    assert data.test.y[:12].tolist() == [1, 3, 5, 1, 2, 9, 1, 2, 1, 2, 4, 1]
    assert int(data.test.x.long().sum()) == 1_779_110


def test_settings_of_the_partition_do_not_load_anew() -> None:
    assert load(DataConfig()) is load(DataConfig(alpha=0.1, clients=3, validation=0.2, partition="iid", column="x"))


def test_examples_are_even_over_classes_and_always_the_same() -> None:
    first = load(DataConfig(examples=250))
    assert first.train.x.shape == (250, 1, 8, 8) and first.train.y.bincount().tolist() == [25] * 10
    assert first.test.x.shape == (359, 1, 8, 8)
    load.__globals__["_load"].cache_clear()
    assert torch.equal(first.train.x, load(DataConfig(examples=250)).train.x)
    assert (load(DataConfig(examples=253)).train.y.bincount() - 25).tolist().count(1) == 3
    assert len(load(DataConfig(examples=1438)).train.y) == 1438
    with pytest.raises(DataError, match=r"data.examples = 1439, but 'digits' has 1438"):
        load(DataConfig(examples=1439))


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_draw_is_stratified(sizes: list[int], share: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    count = round(share * len(labels))
    for even in (False, True):
        index = draw(labels, count, np.random.default_rng(seed), even)
        assert len(index) == count and (np.diff(index) > 0).all()
        taken = np.bincount(labels[index], minlength=len(sizes))
        if even:
            short = taken < np.array(sizes)
            assert not short.any() or taken.max() - taken[short].min() <= 1
        else:
            assert np.abs(taken - share * np.array(sizes)).max() <= 1.5


def test_shrinking_averages_whole_squares() -> None:
    full, half = load(DataConfig()), load(DataConfig(image_size=4))
    assert half.train.x.shape == (1438, 1, 4, 4) and half.test.x.shape == (359, 1, 4, 4)
    wanted = full.train.x.double().unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)).round()
    assert torch.equal(half.train.x.double(), wanted)
    assert half.train.x.is_contiguous(memory_format=torch.channels_last)


def test_shrinking_by_another_factor_keeps_the_mean() -> None:
    full, small = load(DataConfig()), load(DataConfig(image_size=5))
    assert small.train.x.shape == (1438, 1, 5, 5)
    difference = small.train.x.double().mean((1, 2, 3)) - full.train.x.double().mean((1, 2, 3))
    assert abs(float(difference.mean())) < 5 and float(difference.abs().max()) < 25


def test_enlarging_is_refused() -> None:
    with pytest.raises(DataError, match=r"data.image-size = 16, .*8 pixels.*allowed is 1 to 8"):
        load(DataConfig(image_size=16))


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "fashion-mnist"])
def test_an_absent_data_set_says_what_to_do(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(DataConfig(source=source, path=str(tmp_path / "none"), download=False))
    for part in (source, str(tmp_path / "none"), "data.download = true", 'data.source = "npz"', "x_train"):
        assert part in str(caught.value)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("Error downloading it"), EOFError("cut")])
def test_a_failed_download_says_what_to_do(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(self: object) -> None:
        raise error

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)
    with pytest.raises(DataError, match=rf"'cifar10'.*could not be downloaded \({error}\).*data.path.*npz"):
        load(DataConfig(source="cifar10", path=str(tmp_path)))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="could not be downloaded"):
        load(DataConfig(source="cifar10", path=str(tmp_path / "file" / "cache")))


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_fashion_mnist_is_read_from_its_idx_files(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    x = {name: rng.integers(0, 256, (n, 28, 28)) for name, n in (("train", 30), ("t10k", 20))}
    for name, images in x.items():
        write_idx(raw / f"{name}-images-idx3-ubyte", images)
        write_idx(raw / f"{name}-labels-idx1-ubyte", np.arange(len(images)) % 10)
    data = load(DataConfig(source="fashion-mnist", path=str(tmp_path), image_size=14))
    assert data.train.x.shape == (30, 1, 14, 14) and data.test.x.shape == (20, 1, 14, 14)
    assert data.train.y.tolist() == [*range(10)] * 3
    assert data.classes[:2] == ("T-shirt/top", "Trouser") and data.mean == (0.2860,)
    whole = load(DataConfig(source="fashion-mnist", path=str(tmp_path), download=False))
    assert np.array_equal(whole.test.x[:, 0].numpy(), x["t10k"])


@pytest.mark.parametrize(("source", "key"), [("cifar10", "labels"), ("cifar100", "fine_labels")])
def test_cifar_is_read_from_its_batches(source: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[source]
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (len(kind.train_list) + 1, 10, 3, 32, 32), dtype=np.uint8)
    for images, (name, _) in zip(pixels, kind.train_list + kind.test_list, strict=True):
        (folder / name).write_bytes(pickle.dumps({"data": images.reshape(10, -1), key: [*range(10)]}))
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: [f"class {i}" for i in range(10)]}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = load(DataConfig(source=source, path=str(tmp_path), download=False))
    assert data.train.x.shape == (10 * len(kind.train_list), 3, 32, 32) and data.train.y[:10].tolist() == [*range(10)]
    assert np.array_equal(data.test.x.numpy(), pixels[-1]) and data.classes[3] == "class 3"
    assert len(data.mean) == len(data.std) == 3
    assert data.train.x.is_contiguous(memory_format=torch.channels_last)
