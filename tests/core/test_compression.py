from __future__ import annotations

from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fednas_core.base.errors import ReplyError
from fednas_core.exchange.codecs import EXACT, STEPS, Codec, Shapes, TopK, codec, count

CODECS = ["fp32", "fp16", "bf16", "int8", "topk"]
SHAPES: dict[str, tuple[int, ...]] = {"conv": (6, 4, 3, 3), "norm": (6,), "one": (1,), "head": (10, 6)}


def drawn(shapes: Shapes, seed: int = 0, size: float = 1.0) -> Tensor:
    return size * torch.randn(count(shapes), generator=torch.Generator().manual_seed(seed))


def there_and_back(codec: Codec, flat: Tensor, shapes: Shapes, seed: int = 1) -> Tensor:
    payload = codec.encode(flat, shapes, seed)
    assert payload.dtype == torch.uint8 and payload.shape == (codec.size(shapes),)
    back = codec.decode(payload.clone(), shapes)
    assert back.dtype == torch.float32 and back.shape == flat.shape
    return back


def channels(flat: Tensor, shapes: Shapes) -> list[tuple[Tensor, int]]:
    """Each value's channel: slices of the flat tensor that share a step."""
    rows, start = [], 0
    for shape in shapes.values():
        size = int(np.prod(shape))
        many = shape[0] if len(shape) > 1 else 1
        rows += [(flat[start + i * size // many : start + (i + 1) * size // many], start) for i in range(many)]
        start += size
    return rows


named_shapes = st.dictionaries(
    st.text("abc", min_size=1), st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple), min_size=1, max_size=5
)


@given(named_shapes, st.sampled_from(CODECS), st.floats(1e-4, 1.0), st.integers(0, 9), st.sampled_from([1e-6, 1.0, 50]))
@settings(max_examples=60, deadline=None)
def test_any_tensors_come_back_nearly(
    shapes: dict[str, tuple[int, ...]], name: str, keep: float, seed: int, size: float
) -> None:
    chosen = codec(name, keep)
    flat = drawn(shapes, seed, size)
    back = there_and_back(chosen, flat, shapes)
    if name == "topk":
        kept = max(1, round(keep * count(shapes)))
        assert int((back != 0).sum()) <= kept
        left_out = flat.abs().sort(descending=True).values[kept:]
        rounding = 2**-10 * flat.abs().max() + 6e-8
        assert (back - flat).abs().max() <= max(float(left_out.max()) if len(left_out) else 0.0, float(rounding))
    elif name == "int8":
        for (mine, _), (theirs, _) in zip(channels(back, shapes), channels(flat, shapes), strict=True):
            assert (mine - theirs).abs().max() <= 1.01 * theirs.abs().max() / STEPS
    else:
        assert torch.allclose(back, flat, rtol={"fp32": 0.0, "fp16": 2**-10, "bf16": 2**-8}[name], atol=6e-8)


def test_sizes_in_bytes() -> None:
    """216 + 6 + 1 + 60 values in 6 + 1 + 1 + 10 channels."""
    values = 216 + 6 + 1 + 60
    assert count(SHAPES) == values
    assert [codec(name, 0.1).size(SHAPES) for name in ("fp32", "fp16", "bf16", "int8")] == [
        4 * values, 2 * values, 2 * values, values + 2 * 18,
    ]  # fmt: skip
    assert TopK(0.1).size(SHAPES) == 8 * ceil(values / 64) + 2 * 28  # a bitmap, and 28 values
    assert TopK(0.01).size(SHAPES) == 3 * 4 + 3 * 2  # three indices


def test_float32_is_passed_on_as_it_is() -> None:
    flat = drawn(SHAPES)
    flat[3], flat[4] = float("nan"), float("inf")
    payload = EXACT.encode(flat, SHAPES, 0)
    assert payload.data_ptr() == flat.data_ptr()
    assert payload.numpy().tobytes() == flat.numpy().tobytes()
    assert codec("fp32", 0.1) == EXACT


def test_int8_takes_a_step_for_each_channel_and_one_for_a_vector() -> None:
    shapes = {"a": (2, 3), "b": (3,)}
    flat = torch.tensor([1.26, 0.0, -1.26, 126.0, 1.0, 0.0, 0.126, -0.126, 0.063])
    payload = codec("int8", 0.1).encode(flat, shapes, 1)
    steps = payload[:6].view(torch.bfloat16).float()
    assert torch.allclose(steps, torch.tensor([0.01, 1.0, 0.001]), rtol=2**-8)
    assert payload[6:].view(torch.int8)[[1, 3, 4, 5]].tolist() == [0, 126, 1, 0]


def test_int8_is_unbiased_and_the_seed_decides_it() -> None:
    shapes = {"a": (4, 50)}
    flat, int8 = drawn(shapes, 3, 0.01), codec("int8", 0.1)
    backs = torch.stack([there_and_back(int8, flat, shapes, seed) for seed in range(2000)])
    step = flat.view(4, 50).abs().amax(1).repeat_interleave(50) / STEPS
    assert ((backs - flat).abs() <= 1.01 * step).all()
    assert ((backs.mean(0) - flat).abs() < 0.06 * step).all()  # five standard errors
    assert torch.equal(backs[7], there_and_back(int8, flat, shapes, 7)) and not torch.equal(backs[7], backs[8])


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-39, 1e-20])
def test_nothing_is_too_small(name: str, size: float) -> None:
    back = there_and_back(codec(name, 0.5), torch.full((283,), size), SHAPES)
    assert torch.isfinite(back).all() and back.abs().max() <= 4 * size + 6e-8 * (name in ("fp16", "topk"))


@pytest.mark.parametrize(("name", "limit"), [("fp16", 65504.0), ("topk", 65504.0), ("bf16", 3.3e38), ("int8", 3.3e38)])
def test_what_is_too_large_is_refused(name: str, limit: float) -> None:
    flat = drawn(SHAPES)
    flat[5] = limit
    assert there_and_back(codec(name, 0.1), flat, SHAPES)[5] == pytest.approx(limit, rel=0.01)
    for value in ([1e6] if limit < 1e6 else []) + [float("inf"), float("nan")]:
        flat[5] = value
        with pytest.raises(ReplyError, match=f"{name.replace('fp', 'float').replace('bf', 'bfloat')}: found values"):
            codec(name, 0.1).encode(flat, SHAPES, 1)


def test_topk_sends_the_largest_of_all_tensors_and_the_first_of_equals() -> None:
    shapes = {"a": (3,), "b": (2, 2)}
    flat = torch.tensor([0.5, -4.0, 0.5, 0.25, 3.0, -0.5, 0.0])
    assert there_and_back(TopK(2 / 7), flat, shapes).tolist() == [0, -4, 0, 0, 3, 0, 0]
    assert there_and_back(TopK(4 / 7), flat, shapes).tolist() == [0.5, -4, 0.5, 0, 3, 0, 0]
    assert there_and_back(TopK(1.0), flat, shapes).tolist() == flat.tolist()
    assert there_and_back(TopK(1e-4), flat, shapes).tolist() == [0, -4, 0, 0, 0, 0, 0]
    assert there_and_back(TopK(0.5), torch.zeros(7), shapes).tolist() == [0] * 7


@given(st.integers(1, 200), st.floats(1e-4, 1.0))
@settings(max_examples=60, deadline=None)
def test_places_take_the_smaller_of_two_forms(total: int, keep: float) -> None:
    kept = max(1, round(keep * total))
    assert TopK(keep).size({"a": (total,)}) == 2 * kept + min(4 * kept, 8 * ceil(total / 64))
    flat = drawn({"a": (total,)}, total)
    back = there_and_back(TopK(keep), flat, {"a": (total,)})
    largest = flat.abs().argsort(descending=True)[:kept]
    assert set(back.nonzero().flatten().tolist()) == set(largest.tolist())
