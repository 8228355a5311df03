from __future__ import annotations

import pytest

from fednas_core.base.units import count, duration, few, macs, milliseconds, percent, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (7, "7"), (999, "999"), (1000, "1 k"), (999_499, "999 k"), (999_500, "1 M"), (452_300, "452 k"),
        (1_250_000, "1.25 M"), (3_456_000_000, "3.46 G"), (2.5e12, "2.50 T"), (0.0123, "0.0123"), (-1500, "-1.50 k"),
        (None, "–"), (float("nan"), "–"), (float("inf"), "–"),
    ],
)  # fmt: skip
def test_counts_have_three_digits_and_a_prefix(value: float | None, text: str) -> None:
    assert count(value) == text


def test_units() -> None:
    assert macs(2_000_000) == "2 M MACs"
    assert macs(None) == "–"
    assert size(31_234) == "31.2 kB"
    assert size(12) == "12 B"
    assert percent(0.97345) == "97.3 %"
    assert percent(None) == percent(float("nan")) == "–"
    assert milliseconds(0.6172) == "0.617 ms"
    assert milliseconds(None) == "–"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.24, "4.24 s"),
        (0, "0 s"),
        (59.4, "59.4 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (12_000, "3 h 20 min"),
        (None, "–"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_few_names_in_one_line() -> None:
    assert few(["a", "b"]) == "a, b"
    assert few(map(str, range(5)), most=3) == "0, 1, 2 and 2 more"
