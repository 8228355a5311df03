from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fednas_core.base.errors import ReplyError
from fednas_core.exchange.processors.norms import check_norm, clip_share, shorten, update_norm, usual_norm

norms = st.floats(1e-9, 1e9)


def test_the_norm_of_an_update_is_its_root_mean_square() -> None:
    sent = {"a": torch.zeros(2, 2), "b": torch.ones(4)}
    tensors = {"a": torch.full((2, 2), 3.0), "b": torch.tensor([1.0, 1.0, 1.0, 5.0])}
    assert update_norm(tensors, sent) == pytest.approx(math.sqrt((4 * 9 + 16) / 8), rel=1e-6)
    assert update_norm(sent, sent) == 0.0


def test_small_and_large_subnets_compare() -> None:
    small, large = {"a": torch.zeros(3)}, {"a": torch.zeros(3000)}
    assert update_norm({"a": torch.full((3,), 0.5)}, small) == update_norm({"a": torch.full((3000,), 0.5)}, large)


def test_the_norm_is_the_same_however_the_tensor_lies() -> None:
    flat = torch.randn(1001, generator=torch.Generator().manual_seed(1))
    aligned, shifted = flat[1:].clone(), flat[1:]
    strided = torch.stack([aligned, aligned], 1)[:, 0]
    found = {update_norm({"a": tensor}, {"a": torch.zeros(1000)}) for tensor in (aligned, shifted, strided)}
    assert len(found) == 1


def test_what_is_usual_is_the_lower_median() -> None:
    assert usual_norm([1.0, 900.0, 2.0], None) == 2.0
    assert usual_norm([1.0, 2.0, 900.0, 900.0], 7.0) == 2.0
    assert usual_norm([], None) is None and usual_norm([5.0], None) is None and usual_norm([5.0, 6.0], None) is None
    assert usual_norm([], 3.0) == 3.0
    assert usual_norm([900.0], 3.0) == 3.0 and usual_norm([2.0], 3.0) == 2.0
    assert usual_norm([900.0, 800.0], 3.0) == 800.0 and usual_norm([2.0, 900.0], 3.0) == 3.0


@given(st.lists(norms, min_size=3), st.integers(1, 10))
def test_a_minority_cannot_raise_what_is_usual(honest: list[float], extra: int) -> None:
    liars = [1e12] * min(extra, len(honest))
    assert usual_norm([*liars, *honest], None) <= max(honest)  # type: ignore[operator]


def test_an_update_far_out_is_refused_with_its_multiple() -> None:
    with pytest.raises(
        ReplyError, match=r"client c: its update is 812 times the cohort's median, allowed is up to 100"
    ):
        check_norm("c", 8.12, 0.01, 100.0)
    check_norm("c", 1.0, 0.01, 100.0)
    check_norm("c", 1e9, None, 100.0)  # nothing tells what is usual
    check_norm("c", 1e9, 0.01, 0.0)  # switched off
    check_norm("c", 1e9, 0.0, 100.0)  # nobody else moved at all


@given(norms, norms, st.floats(0.01, 10))
def test_clipping_leaves_at_most_the_clip(norm: float, usual: float, clip: float) -> None:
    share = clip_share(clip, norm, usual)
    assert 0 < share <= 1 and share * norm <= clip * usual * (1 + 1e-9) or share == 1 and norm <= clip * usual
    assert clip_share(0.0, norm, usual) == clip_share(clip, norm, None) == clip_share(clip, 0.0, usual) == 1


@pytest.mark.parametrize("share", [0.9, 0.25, 1e-3])
def test_a_shortened_update_is_a_share_of_it_in_place(share: float) -> None:
    generator = torch.Generator().manual_seed(2)
    sent = {"a": torch.randn(5, 3, generator=generator), "b": torch.randn(7, generator=generator)}
    reply = {name: tensor + torch.randn(tensor.shape, generator=generator) for name, tensor in sent.items()}
    wanted = {name: sent[name] + share * (reply[name] - sent[name]) for name in sent}
    before = dict(reply)
    shorten(reply, sent, share)
    for name, tensor in reply.items():
        assert tensor is before[name]
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)


def test_a_reply_without_tensors_has_changed_nothing() -> None:
    assert update_norm({}, {}) == 0.0
    shorten({}, {}, 0.5)
