"""Users' own images: what is read from .npz files and folders, and what is refused with which words."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fednas_core.base.config import DataConfig
from fednas_core.base.errors import DataError
from fednas_core.data.files import Arrays, pixels, read_folder, read_npz, shortest_side
from fednas_core.data.sources import load

RNG = np.random.default_rng(0)


def arrays(**changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "x_train": RNG.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": RNG.integers(0, 256, (5, 6, 6, 3), dtype=np.uint8),
        "y_test": np.arange(5) % 3,
        "writer_train": np.array(["ann", "bob"])[np.arange(12) % 2],
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def save(path: Path, **changes: Any) -> Path:
    np.savez(path, **arrays(**changes))
    return path


def test_npz(tmp_path: Path) -> None:
    content = arrays(y_train=(np.arange(12) % 3).astype(np.uint8))
    np.savez_compressed(tmp_path / "own.npz", **content)
    data = load(DataConfig(source="npz", path=str(tmp_path / "own.npz")))
    assert data.train.x.shape == (12, 3, 6, 6) and data.test.x.shape == (5, 3, 6, 6)
    assert np.array_equal(data.train.x.permute(0, 2, 3, 1).numpy(), content["x_train"])
    assert data.train.x.is_contiguous(memory_format=torch.channels_last)
    assert data.train.y.dtype == torch.int64 and data.train.y.tolist() == content["y_train"].tolist()
    assert data.classes == ("0", "1", "2") and data.train.groups is None
    assert data.mean == (0.5,) * 3 and data.std == (0.25,) * 3


def test_npz_of_grey_images_shrunk(tmp_path: Path) -> None:
    x = RNG.integers(0, 256, (6, 6, 6), dtype=np.uint8)
    file = save(tmp_path / "own.npz", x_train=x, y_train=np.arange(6) % 2, x_test=x[:2], y_test=np.arange(2))
    data = load(DataConfig(source="npz", path=str(file), image_size=2))
    assert np.array_equal(data.train.x[:, 0].double(), x.reshape(6, 2, 3, 2, 3).mean((2, 4)).round())


@pytest.mark.parametrize("column", ["writer", "writer_train"])
def test_npz_column(column: str, tmp_path: Path) -> None:
    file = save(tmp_path / "own.npz")
    config = DataConfig(source="npz", path=str(file), partition="column", column=column, examples=6)
    data = load(config)
    assert data.train.groups is not None and data.train.groups.shape == (6,)
    whole = np.load(file)
    lookup = {image.tobytes(): owner for image, owner in zip(whole["x_train"], whole["writer_train"], strict=True)}
    for image, owner in zip(data.train.x.permute(0, 2, 3, 1), data.train.groups, strict=True):
        assert lookup[image.contiguous().numpy().tobytes()] == owner


BAD_NPZ = {
    "key": ({"y_test": None}, "lacks y_test; it holds x_train"),
    "column key": ({"writer_train": None}, "lacks writer_train"),
    "floats": ({"x_train": np.zeros((12, 6, 6, 3))}, r"x_train is float64 \(12, 6, 6, 3\): expected uint8"),
    "nan": ({"x_test": np.full((5, 6, 6, 3), np.nan)}, "x_test is float64 .* holds NaN"),
    "rank": ({"x_train": np.zeros((12, 108), np.uint8)}, r"x_train is uint8 \(12, 108\)"),
    "nchw": ({"x_train": np.zeros((12, 3, 6, 6), np.uint8)}, r"channels last.*x_train.transpose\(0, 2, 3, 1\)"),
    "no images": ({"x_test": np.zeros((0, 6, 6, 3), np.uint8), "y_test": np.zeros(0, int)}, "x_test .*at least one"),
    "other size": ({"x_test": np.zeros((5, 8, 8, 3), np.uint8)}, r"\(6, 6, 3\) in x_train but \(8, 8, 3\) in x_test"),
    "label length": ({"y_train": np.arange(11) % 3}, r"y_train is int64 \(11,\): expected integers \(12,\)"),
    "label column": ({"y_train": (np.arange(12) % 3)[:, None]}, r"y_train is int64 \(12, 1\)"),
    "label nan": ({"y_train": np.full(12, np.nan)}, "y_train is float64 .* holds NaN"),
    "label gap": ({"y_train": np.arange(12) % 3 * 2}, "3 different labels from 0 to 4"),
    "label from 1": ({"y_train": np.arange(12) % 3 + 1}, "3 different labels from 1 to 3"),
    "negative": ({"y_train": np.arange(12) % 3 - 1}, "labels from -1 to 1"),
    "one class": ({"y_train": np.zeros(12, int), "y_test": np.zeros(5, int)}, "single class"),
    "unknown label": ({"y_test": np.array([0, 1, 2, 3, 0])}, "y_test holds labels from 0 to 3: allowed are 0 to 2"),
    "objects": ({"y_train": np.array([0, 1, "two"] * 4, dtype=object)}, "cannot be read as .npz .*not objects"),
    "column length": ({"writer_train": np.arange(4)}, r"'writer_train' is int64 \(4,\)"),
    "column kind": ({"writer_train": np.linspace(0, 1, 12)}, "'writer_train' is float64"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_bad_npz_is_refused(case: str, tmp_path: Path) -> None:
    changes, message = BAD_NPZ[case]
    file = save(tmp_path / "own.npz", **changes)
    with pytest.raises(DataError, match=message) as caught:
        read_npz(file, "writer")
    assert str(file) in str(caught.value)


def test_other_files_are_no_npz(tmp_path: Path) -> None:
    file = save(tmp_path / "own.npz")
    (tmp_path / "cut.npz").write_bytes(file.read_bytes()[:500])
    damaged = bytearray(file.read_bytes())
    damaged[300:340] = bytes(40)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_text("")
    for name in ("cut", "damaged", "text", "empty"):
        with pytest.raises(DataError, match=f"{name}.npz' cannot be read as .npz"):
            read_npz(tmp_path / f"{name}.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(DataError, match="single array"):
        read_npz(tmp_path / "single.npy")
    with pytest.raises(DataError, match="not a file"):
        read_npz(tmp_path / "absent.npz")


@pytest.mark.parametrize("source", ["npz", "folder"])
def test_a_path_is_needed(source: str) -> None:
    with pytest.raises(DataError, match=f"data.source '{source}' needs data.path"):
        load(DataConfig(source=source))


def test_only_npz_has_columns() -> None:
    with pytest.raises(DataError, match="needs data.source 'npz'; 'digits' has no columns"):
        load(DataConfig(partition="column", column="writer"))


def image(path: Path, pixels: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def folder(root: Path, grey: bool = False, size: int = 8) -> dict[str, np.ndarray]:
    shape = (size, size) if grey else (size, size, 3)
    return {
        f"{split}/{name}/{number}.png": image(
            root / split / name / f"{number}.png", RNG.integers(0, 256, shape, dtype=np.uint8)
        )
        for split in ("train", "test")
        for name in ("cat", "dog")
        for number in range(2)
    }


def test_folder(tmp_path: Path) -> None:
    pixels = folder(tmp_path)
    image(tmp_path / "train" / "dog" / "deeper" / "9.bmp", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "train" / "dog" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".hidden").mkdir()
    data = load(DataConfig(source="folder", path=str(tmp_path)))
    assert data.classes == ("cat", "dog") and data.mean == (0.5,) * 3
    assert data.train.y.tolist() == [0, 0, 1, 1, 1] and data.test.y.tolist() == [0, 0, 1, 1]
    assert data.train.x.shape == (5, 3, 8, 8)
    assert np.array_equal(data.train.x[1].permute(1, 2, 0).numpy(), pixels["train/cat/1.png"])
    assert np.array_equal(data.test.x[3].permute(1, 2, 0).numpy(), pixels["test/dog/1.png"])


def test_folder_brings_images_to_one_size(tmp_path: Path) -> None:
    folder(tmp_path, grey=True)
    wide = image(tmp_path / "train" / "cat" / "2.png", RNG.integers(0, 256, (16, 21), dtype=np.uint8))
    result = read_folder(tmp_path)
    assert result.x_train.shape == (5, 8, 8, 1)
    wanted = wide[:, 2:18].astype(float).reshape(8, 2, 8, 2).mean((1, 3))
    assert np.abs(result.x_train[2, :, :, 0] - wanted).max() <= 0.5
    assert read_folder(tmp_path, 4).x_test.shape == (4, 4, 4, 1)
    assert read_folder(tmp_path, 3).x_test.shape == (4, 3, 3, 1)


def refused(root: Path, message: str, size: int = 0) -> None:
    with pytest.raises(DataError, match=message):
        read_folder(root, size)


def test_missing_folders_are_named(tmp_path: Path) -> None:
    refused(tmp_path / "absent", r"absent' is not a folder.*train/<class>/<image files>")
    refused(tmp_path, "has no class folders")
    (tmp_path / "train").mkdir()
    refused(tmp_path, "train' has no class folders")
    folder(tmp_path)
    (tmp_path / "train" / "eel").mkdir()
    refused(tmp_path, r"train/eel' holds no images.*\.png")
    (tmp_path / "train" / "eel").rmdir()
    image(tmp_path / "test" / "eel" / "0.png", np.zeros((8, 8, 3), np.uint8))
    refused(tmp_path, "test has images of eel, but .*train of cat, dog only")


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        image(tmp_path / split / "cat" / "0.png", np.zeros((8, 8), np.uint8))
    refused(tmp_path, "single class, cat")


def test_unusable_images_are_named(tmp_path: Path) -> None:
    folder(tmp_path, grey=True)
    refused(tmp_path, r"cat/0.png' is 8 × 8 pixels, smaller than 9.*data.image-size to 8", size=9)
    odd = tmp_path / "test" / "dog" / "7.png"
    image(odd, np.zeros((8, 8), np.uint16))
    refused(tmp_path, "7.png' has more than 8 bits")
    odd.write_bytes(b"no image")
    refused(tmp_path, "7.png' cannot be read as an image")
    whole = tmp_path / "test" / "dog" / "0.png"
    odd.write_bytes(whole.read_bytes()[:60])
    refused(tmp_path, "7.png' cannot be read as an image")


def test_a_set_with_one_image_in_colour_is_in_colour(tmp_path: Path) -> None:
    folder(tmp_path, grey=True)
    image(tmp_path / "test" / "dog" / "7.png", np.full((8, 8, 3), (1, 2, 3), np.uint8))
    data = read_folder(tmp_path)
    assert data.x_train.shape == (4, 8, 8, 3) and data.x_test[-1, 0, 0].tolist() == [1, 2, 3]
    with pytest.raises(DataError, match="7.png' is in colour, but the images of this run are grey"):
        pixels(tmp_path / "test" / "dog" / "7.png", 8, grey=True)


def test_a_folder_without_splits_is_all_there_is(tmp_path: Path) -> None:
    for name in ("car", "train"):  # a class of trains is no training split
        for number in range(10):
            image(tmp_path / name / f"{number}.png", np.full((8, 8), number, np.uint8))
    arrays = read_folder(tmp_path)
    assert arrays.classes == ("car", "train") and len(arrays.y_train) == 20 and len(arrays.y_test) == 0
    data = load(DataConfig(source="folder", path=str(tmp_path)))
    assert data.train.y.bincount().tolist() == [8, 8] and data.test.y.bincount().tolist() == [2, 2]


@pytest.mark.parametrize(("train", "test"), [("train", "val"), ("Train", "Test"), ("train", "validation")])
def test_other_names_of_the_splits(train: str, test: str, tmp_path: Path) -> None:
    for split, count in ((train, 3), (test, 1), ("more", 1)):
        for name in ("cat", "dog"):
            for number in range(count):
                image(tmp_path / split / name / f"{number}.png", np.zeros((8, 8), np.uint8))
    arrays = read_folder(tmp_path)
    assert len(arrays.y_train) == 6 and len(arrays.y_test) == 2


def test_an_archive_without_a_test_gives_a_fifth_of_it(tmp_path: Path) -> None:
    file = save(tmp_path / "own.npz", x_test=None, y_test=None)
    data = load(DataConfig(source="npz", path=str(file), partition="column", column="writer"))
    assert len(data.train.y) == 10 and len(data.test.y) == 2 and set(data.train.y.tolist()) == {0, 1, 2}
    assert data.train.groups is not None and len(data.train.groups) == 10


@pytest.mark.parametrize("each", [1, 2, 3])
def test_of_a_few_images_every_class_keeps_one_to_train_on(each: int, tmp_path: Path) -> None:
    x = RNG.integers(0, 256, (5 * each + 1, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "few.npz", x_train=x, y_train=np.arange(5 * each + 1) % 5)
    data = load(DataConfig(source="npz", path=str(tmp_path / "few.npz")))
    assert len(data.test.y) == max(1, round(0.2 * len(x))) and set(data.train.y.tolist()) == set(range(5))


def test_one_image_of_each_class_leaves_none_to_test(tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", x_train=np.zeros((3, 6, 6), np.uint8), y_train=np.arange(3))
    with pytest.raises(DataError, match="none of its classes has two images"):
        load(DataConfig(source="npz", path=str(tmp_path / "few.npz")))


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 6, 3)])
def test_arrays_are_cut_to_their_central_squares(shape: tuple[int, ...], tmp_path: Path) -> None:
    x = RNG.integers(0, 256, (4, *shape), dtype=np.uint8)
    np.savez(tmp_path / "wide.npz", x_train=x, y_train=np.arange(4) % 2, x_test=x, y_test=np.arange(4) % 2)
    top, left = (shape[0] - 6) // 2, (shape[1] - 6) // 2
    found = read_npz(tmp_path / "wide.npz").x_train
    assert np.array_equal(found.reshape(x[:, :6, :6].shape), x[:, top : top + 6, left : left + 6])


# -- what image files are made of ----------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(1, 9))
def test_images_are_turned_upright(turn: int, tmp_path: Path) -> None:
    upright = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3), np.full((8, 8), 40, np.uint8))
    stored = ImageOps.exif_transpose  # its inverse: 6 and 8 undo each other, all others themselves
    exif = Image.Exif()
    exif[0x0112] = {6: 8, 8: 6}.get(turn, turn)
    source = tmp_path / "source.png"
    Image.fromarray(upright).save(source, exif=exif)
    with Image.open(source) as opened:
        turned = stored(opened)
    exif[0x0112] = turn
    turned.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "turned.png", 16, grey=True)[:, :, 0], upright[:, 4:20])


def test_what_systems_hide_is_no_image(tmp_path: Path) -> None:
    folder(tmp_path)
    junk = ["dog/.hidden.png", "dog/.cache/1.png", "dog/deep/__MACOSX/1.png", "dog/@eaDir/1.png", "__MACOSX/cat/1.png"]
    for name in [*junk, "dog/._0.png"]:
        file = tmp_path / "train" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"no image")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
        (tmp_path / "train" / "dog" / name).write_bytes(b"no image")
    (tmp_path / "train" / "dog" / "a folder.png").mkdir()
    (tmp_path / "train" / "dog" / "loop").symlink_to(tmp_path / "train", target_is_directory=True)
    image(tmp_path / "train" / "dog" / "9.PNG", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "train" / "dog" / "link.png").symlink_to(tmp_path / "train" / "dog" / "0.png")
    assert read_folder(tmp_path).y_train.tolist() == [0, 0, 1, 1, 1, 1]


def test_all_unusable_images_are_told_at_once(tmp_path: Path) -> None:
    folder(tmp_path, size=16)
    photo = tmp_path / "photo.jpg"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(photo)
    bad = tmp_path / "train" / "cat"
    (bad / "cut.jpg").write_bytes(photo.read_bytes()[:1500])
    (bad / "empty.webp").write_bytes(b"")
    (bad / "gone.bmp").symlink_to(tmp_path / "nowhere.bmp")
    image(bad / "deep.png", np.zeros((16, 16), np.uint16))
    for number in range(8):
        image(tmp_path / "test" / "cat" / f"small{number}.png", np.zeros((9, 12, 3), np.uint8))
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path, 16)
    told = str(caught.value)
    assert told.startswith(f"12 of 20 images in '{tmp_path}' cannot be used:") and told.endswith("… and 2 more")
    for part in ("cut.jpg' cannot be read", "empty.webp' cannot", "gone.bmp' cannot", "deep.png' has more than 8 bits"):
        assert part in told
    assert told.count("is 12 × 9 pixels, smaller than 16") == 6
    assert shortest_side(tmp_path) == (9, tmp_path / "test" / "cat" / "small0.png")


def test_kinds_of_images(tmp_path: Path) -> None:
    red = Image.new("RGB", (8, 8), (250, 20, 10))
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.paste((250, 20, 10, 255), (0, 0, 8, 4))
    files = {
        "palette.png": red.convert("P", palette=Image.Palette.ADAPTIVE),
        "cmyk.jpg": red.convert("CMYK"),
        "opaque.png": red.convert("RGBA"),
        "half.png": clear,
        "half.webp": clear,
    }
    for name, picture in files.items():
        picture.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {"quality": 95}))
        top = pixels(tmp_path / name, 8, grey=False)[0, 0].astype(int)
        assert np.abs(top - (250, 20, 10)).max() <= 6, name
    for name in ("half.png", "half.webp"):
        assert (pixels(tmp_path / name, 8, grey=False)[7] == 255).all(), "transparent pixels are a white page's"
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    frames[0].save(tmp_path / "pages.tiff", save_all=True, append_images=frames[1:])
    assert (pixels(tmp_path / "pages.tiff", 8, grey=True) == 10).all()
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "clear.png")
    assert (pixels(tmp_path / "clear.png", 8, grey=True) == 255).all()


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "tif", "webp", "ppm"])
def test_damaged_images_are_refused_in_words(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    file = tmp_path / f"photo.{kind}"
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(file)
    whole = file.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 400), 6):
            damaged[place] = rng.integers(0, 256)
        file.write_bytes(bytes(damaged[: rng.integers(1, len(whole) + 1)]))
        with contextlib.suppress(DataError):
            pixels(file, 1, grey=False)


# -- names of classes ----------------------------------------------------------------------------------------------


NAMES = {
    os.fsdecode(b"caf\xe9"): r"caf\xe9",
    "line\nbreak": r"line\nbreak",
    "<script>alert('x')</script>".replace("/", "∕"): "<script>alert('x')<∕script>",
    "日本": "日本",
    "CON": "CON",
    "a" * 255: "a" * 255,
}


def test_names_of_classes_are_text_that_can_be_printed(tmp_path: Path) -> None:
    for name in NAMES:
        image(tmp_path / name / "0.png", np.zeros((8, 8), np.uint8))
    classes = read_folder(tmp_path).classes
    assert sorted(classes) == sorted(NAMES.values())
    assert all(name.isprintable() and name.encode() for name in classes)
    (tmp_path / os.fsdecode(b"caf\xe9") / "1.png").write_bytes(b"no image")
    refused(tmp_path, r"caf\\xe9/1.png' cannot be read as an image")
    image(tmp_path / r"caf\xe9" / "0.png", np.zeros((8, 8), np.uint8))
    refused(tmp_path, r"two folders whose names read caf\\xe9: rename")


def test_classes_that_differ_by_case_are_two(tmp_path: Path) -> None:
    for name in ("a", "A"):
        image(tmp_path / name / "0.png", np.zeros((8, 8), np.uint8))
    assert read_folder(tmp_path).classes == ("A", "a")


def test_arrays_have_no_owners_by_default() -> None:
    x, y = np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, np.int64)
    assert Arrays(x, y, x, y, ("a",)).groups is None
