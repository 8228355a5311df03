"""Preprocessing, augmentation and batches: properties over random images, sizes and seeds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas_core.base.config import TrainConfig
from fednas_core.base.errors import ConfigError, DataError
from fednas_core.data.augment import RECIPES, Preprocessing, augment, batches
from fednas_core.data.sources import STATISTICS

MEAN, STD = STATISTICS["cifar10"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(seed: int, n: int, channels: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator(seed))


def windows(image: torch.Tensor) -> set[bytes]:
    """All windows of the image (channels, size, size) with its black border, as bytes."""
    size = image.shape[-1]
    border = size // 8
    padded = torch.nn.functional.pad(image, (border,) * 4)
    spots = range(2 * border + 1)
    return {padded[:, i : i + size, j : j + size].numpy().tobytes() for i in spots for j in spots}


cases = given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    size=st.sampled_from([4, 8, 12, 17]),
    channels_last=st.booleans(),
)


@settings(max_examples=40, deadline=None)
@cases
def test_a_crop_is_a_window_of_the_bordered_image(
    seed: int, n: int, channels: int, size: int, channels_last: bool
) -> None:
    x = random_images(seed, n, channels, size)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    before = x.clone()
    for recipe in ("crop", "crop-flip"):
        out = augment(x, recipe, generator(seed), MEAN)
        assert out.shape == x.shape and out.dtype == torch.uint8
        assert out.is_contiguous(memory_format=torch.channels_last)
        for old, new in zip(x, out, strict=True):
            allowed = windows(old) | (windows(old.flip(-1)) if recipe == "crop-flip" else set())
            assert new.contiguous().numpy().tobytes() in allowed
    assert torch.equal(x, before)


@settings(max_examples=25, deadline=None)
@cases
def test_the_result_depends_on_images_and_generator_only(
    seed: int, n: int, channels: int, size: int, channels_last: bool
) -> None:
    x = random_images(seed, n, channels, size)
    other = x.contiguous(memory_format=torch.channels_last) if channels_last else x.clone()
    for recipe in RECIPES:
        one, two = (augment(images, recipe, generator(seed), MEAN[:channels]) for images in (x, other))
        assert torch.equal(one, two)


def test_every_offset_and_both_mirrors_occur_equally_often() -> None:
    n, size = 20_000, 8  # 3 × 3 windows, two mirrors
    mark = torch.zeros(1, 1, size, size, dtype=torch.uint8)
    mark[0, 0, 3, 2] = 255
    out = augment(mark.expand(n, -1, -1, -1), "crop-flip", generator(5), MEAN)
    spots = out.flatten(1).argmax(1).bincount(minlength=size * size).view(size, size)
    # column 2 moves to 1, 2 or 3; mirrored it is column 5 and moves to 4, 5 or 6; row 3 to 2, 3 or 4
    assert spots[2:5, 1:7].sum() == n
    assert (spots[2:5, 1:7] - n / 18).abs().max() < 5 * (n / 18) ** 0.5
    assert abs(int(spots[:, 1:4].sum()) / n - 0.5) < 0.02


def test_images_of_a_batch_are_altered_independently() -> None:
    x = random_images(0, 1, 3, 32).expand(64, -1, -1, -1)
    out = augment(x, "crop-flip", generator(1), MEAN)
    assert len({image.numpy().tobytes() for image in out.contiguous()}) > 40
    assert not torch.equal(out, augment(x, "crop-flip", generator(2), MEAN))


def test_the_generator_moves_on() -> None:
    x, source = random_images(0, 8, 3, 16), generator(1)
    assert not torch.equal(augment(x, "crop", source, MEAN), augment(x, "crop", source, MEAN))
    state = source.get_state()
    assert augment(x, "none", source, MEAN) is x
    assert torch.equal(source.get_state(), state)


def test_cutout_paints_one_clipped_square_that_is_zero_after_normalising() -> None:
    n, size = 400, 32
    x = random_images(7, n, 3, size)
    plain, cut = augment(x, "crop-flip", generator(3), MEAN), augment(x, "crop-flip-cutout", generator(3), MEAN)
    changed = (plain != cut).any(1)
    normalised, half_a_level = Preprocessing(MEAN, STD)(cut), 0.5 / (255 * min(STD))
    areas = []
    for mask, image in zip(changed, normalised, strict=True):
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        left, right = int(columns[0]), int(columns[-1]) + 1
        assert 8 <= bottom - top <= 16 and 8 <= right - left <= 16
        assert bottom - top == 16 or top == 0 or bottom == size
        assert right - left == 16 or left == 0 or right == size
        assert image[:, top:bottom, left:right].abs().max() <= half_a_level
        areas.append((bottom - top) * (right - left))
    # a side measures 16 at 17 of the 32 centres, 8 … 15 at the rest: 14.125 on average
    assert abs(sum(areas) / n - 14.125**2) < 8


def test_images_of_the_mean_colour_stay_as_they_are_under_cutout() -> None:
    x = torch.full((6, 2, 4, 4), 200, dtype=torch.uint8)  # side 4: no border, so nothing black comes in
    assert torch.equal(augment(x, "crop-flip-cutout", generator(0), [200 / 255] * 2), x)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_preprocessing_is_the_textbook_formula(channels: int, channels_last: bool) -> None:
    x = random_images(1, 7, channels, 9)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    mean, std = (0.4914, 0.4822, 0.4465)[:channels], (0.247, 0.2435, 0.2616)[:channels]
    out = Preprocessing(mean, std)(x)
    wanted = (x.double() / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    assert out.dtype == torch.float32 and out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=2e-6)


def test_golden_values() -> None:
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    assert Preprocessing((0.5,), (0.25,))(black_and_white).flatten().tolist() == pytest.approx([-2.0, 2.0], abs=1e-6)


def test_bad_images_and_recipes_are_refused() -> None:
    x = random_images(0, 2, 3, 8)
    with pytest.raises(ConfigError, match="'mixup'.*crop-flip-cutout"):
        augment(x, "mixup", generator(0), MEAN)
    with pytest.raises(DataError, match=r"torch.float32 \(2, 3, 8, 8\)"):
        augment(x.float(), "crop", generator(0), MEAN)
    with pytest.raises(DataError, match="3 channels, the preprocessing is for 1"):
        Preprocessing((0.5,), (0.25,))(x)
    with pytest.raises(DataError, match="uint8"):
        Preprocessing((0.5,) * 3, (0.25,) * 3)(x[0])


def test_the_settings_know_every_recipe() -> None:
    assert TrainConfig.__dataclass_fields__["augment"].metadata["choices"] == RECIPES


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 70), batch=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_batches_hold_each_example_once_and_none_is_alone(n: int, batch: int, seed: int) -> None:
    parts = list(batches(n, batch, generator(seed)))
    assert sorted(torch.cat(parts).tolist()) == list(range(n))
    assert all(part.dtype == torch.int64 for part in parts)
    assert all(len(part) == batch for part in parts[:-1])
    if batch > 1 and n > 1:
        assert 2 <= len(parts[-1]) <= batch + 1
    again = list(batches(n, batch, generator(seed)))
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))


def test_batch_lengths() -> None:
    def lengths(n: int, batch: int) -> list[int]:
        return [len(part) for part in batches(n, batch, generator(0))]

    assert lengths(10, 4) == [4, 4, 2]
    assert lengths(9, 4) == [4, 5]
    assert lengths(1, 4) == [1]
    assert lengths(3, 1) == [1, 1, 1]
    assert list(torch.cat(list(batches(50, 10, generator(0))))) != list(range(50))
    with pytest.raises(DataError, match="no training examples"):
        lengths(0, 4)
