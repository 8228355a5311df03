from __future__ import annotations

import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas_core.show.tested import (
    MOST_TIERS,
    brief,
    by_clients,
    by_network,
    by_tier,
    history,
    images,
    in_order,
    last,
    singles,
    spread_of,
    tiers_of,
)


def row(
    name: str, accuracies: dict[str, float], server: float | None = None, macs: int | None = 1000
) -> dict[str, Any]:
    """Return a row of an evaluation; a client's tier is what its name ends with, after a dash."""
    each: list[dict[str, Any]] = [
        {"client": client, "tier": client.partition("-")[2], "accuracy": accuracy, "loss": 1.0, "tested": 10 + i}
        for i, (client, accuracy) in enumerate(accuracies.items())
    ]
    found = spread_of(list(accuracies.values()))
    tiers = by_tier((one["tier"], one["accuracy"]) for one in each if one["tier"])
    clients = {**found, "tested": 1, "held_out": True, "tiers": tiers, "each": each}
    return {"name": name, "macs": macs, "accuracy": found["mean"] if server is None else server, "loss": 1.0,
            "clients": clients}  # fmt: skip


def plain(name: str, accuracy: float) -> dict[str, Any]:
    return {"name": name, "macs": 1, "accuracy": accuracy, "loss": 1.0}


def test_the_worst_tenth_is_rounded_up() -> None:
    found = spread_of([0.1 * i for i in range(11)])
    assert found["worst_decile"] == pytest.approx(0.05) and found["worst"] == 0.0 and found["best"] == pytest.approx(1)
    assert spread_of([0.5]) == {"clients": 1, "mean": 0.5, "std": 0.0, "worst": 0.5, "worst_decile": 0.5, "best": 0.5}
    assert spread_of([0.25, 0.75])["std"] == 0.25, "of a population"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_the_worst_tenth_lies_between_worst_and_mean(accuracies: list[float]) -> None:
    found = spread_of(accuracies)
    assert found["worst"] - 1e-12 <= found["worst_decile"] <= found["mean"] + 1e-12 <= found["best"] + 2e-12
    assert found["mean"] == pytest.approx(statistics.mean(accuracies))


def test_tiers_stand_from_poor_to_rich() -> None:
    assert in_order(["max", "2M", "no limit", "500k", "min"]) == ["min", "500k", "2M", "max", "no limit"]
    assert in_order(["6.302 M MACs", "900 k MACs", "10 M MACs"]) == ["900 k MACs", "6.302 M MACs", "10 M MACs"]
    assert in_order(["70%", "max", "30%", "min"]) == ["min", "30%", "70%", "max"]
    assert in_order(["20ms", "5ms", "..", "", "²"]) == ["5ms", "20ms", "", "..", "²"]
    assert list(by_tier([("max", 1.0), ("1M", 0.5), ("max", 0.0)])) == ["1M", "max"]


def test_a_line_of_the_terminal_names_each_figure_once() -> None:
    both = [row("phone", {"a": 0.8, "b": 1.0}, server=0.923), row("tablet", {"a": 0.9, "b": 0.9}, server=0.95)]
    assert brief(both) == ["phone 92.3% (clients 90.0%, worst tenth 80.0%)", "tablet 95.0% (90.0%, 90.0%)"]
    alone = [row("phone", {"a": 0.8, "b": 1.0}), row("tablet", {"a": 0.9})]
    assert brief(alone) == ["phone 90.0% (worst tenth 80.0%)", "tablet 90.0% (90.0%)"]
    assert brief([plain("phone", 0.5), *both[:1]]) == ["phone 50.0%", "phone 92.3% (clients 90.0%, worst tenth 80.0%)"]
    assert brief([]) == []


def test_who_tested_a_network() -> None:
    assert by_clients(row("own", {"a": 0.1, "b": 0.2, "c": 0.4}, macs=None))
    assert not by_clients(row("phone", {"a": 0.1}, server=0.2)) and not by_clients(plain("phone", 0.5))


def test_the_last_trial_and_its_single_clients() -> None:
    tried = [
        row("own", {"a": 0.1}, macs=None),
        row("big", {"b": 0.9}, macs=9),
        row("small", {"a": 0.3, "b": 0.4}, macs=5),
    ]
    rounds: list[dict[str, Any]] = [
        {"round": 2, "evaluation": tried[1:]},
        {"round": 4, "evaluation": [*tried, plain("other", 0.1)]},
        {"round": 5, "evaluation": None},
        {"round": 6, "evaluation": [plain("other", 0.1)]},
    ]
    number, rows = last(rounds)
    assert number == 4 and [found["name"] for found in rows] == ["own", "big", "small"]
    assert {name: one["accuracy"] for name, one in singles(rows).items()} == {"a": 0.3, "b": 0.9}, "of the largest"
    assert last(rounds[3:]) == last([]) == (0, ())


def test_words_on_the_images() -> None:
    found = row("phone", {"a": 0.8, "b": 1.0})
    assert images([found]) == "on images of their own that they never train on (10 to 11 each)"
    found["clients"]["held_out"] = False
    assert "also trained on" in images([found])


def test_the_table_of_networks_and_tiers() -> None:
    table = by_network([
        row("phone", {"a-1M": 0.5, "b-1M": 0.7, "c-max": 1.0}), row("workstation", {"c-max": 0.9}, macs=2_500_000),
    ])  # fmt: skip
    assert table.head[:3] == ("Network", "Tier", "MACs") and table.words == 2
    assert table.rows == (
        ("phone", "all", "1 k", "3", "73.3 %", "50.0 %", "50.0 %", "100.0 %", "20.5"),
        ("", "1M", "", "2", "60.0 %", "50.0 %", "50.0 %", "70.0 %", "10.0"),
        ("", "max", "", "1", "100.0 %", "100.0 %", "100.0 %", "100.0 %", "0.0"),
        ("workstation", "max", "2.50 M", "1", "90.0 %", "90.0 %", "90.0 %", "90.0 %", "0.0"),
    )
    table = by_network([row("own", {"a": 0.5, "b": 0.7}, macs=None)])
    assert table.head[:2] == ("Network", "MACs") and table.rows[0][:3] == ("own", "–", "2")


def test_budgets_of_every_device_are_no_tiers() -> None:
    many = [{"tier": f"{i}ms"} for i in range(MOST_TIERS + 1)]
    assert tiers_of(many) == [] and len(tiers_of(many[1:])) == MOST_TIERS and tiers_of(many[:1]) == []
    table = by_network([row("phone", {f"c-{i}ms": 0.5 for i in range(MOST_TIERS + 1)})])
    assert "Tier" not in table.head and len(table.rows) == 1


def test_the_table_of_evaluations() -> None:
    assert history([{"round": 1, "evaluation": None}, {"round": 2}]) is None
    before = history([
        {"round": 1, "evaluation": [plain("phone", 0.5)]},
        {"round": 3, "evaluation": [plain("tablet", 0.7), plain("phone", 0.6)]},
    ])  # fmt: skip
    assert before and before.head == ("Round", "phone", "tablet")
    assert before.rows == (("1", "50.0 %", "–"), ("3", "60.0 %", "70.0 %"))
    both = history([{"round": 1, "evaluation": [row("phone", {"a": 0.8, "b": 1.0}, server=0.5), plain("tablet", 0.6)]}])
    assert both and both.head[:4] == ("Round", "Network", "Server's validation", "Clients")
    assert both.rows[0] == ("1", "phone", "50.0 %", "2", "90.0 %", "80.0 %", "80.0 %", "100.0 %", "10.0")
    assert both.rows[1] == ("1", "tablet", "60.0 %", "–", "–", "–", "–", "–", "–")
    alone = history([{"round": 1, "evaluation": [row("phone", {"a": 0.8, "b": 1.0})]}])
    assert alone and "Server's validation" not in alone.head and alone.rows[0][2] == "2"
