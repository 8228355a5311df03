from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
from contracts.records import evaluated, event, spread
from hypothesis import given
from hypothesis import strategies as st

from fednas_core.base.metrics import ACCURACY, Metric
from fednas_core.base.typed import object_of
from fednas_core.runs.record import Evaluated, RoundEvent, Single, Spread
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
    tiers_of,
)


def row(name: str, accuracies: dict[str, float], server: float | None = None, macs: int | None = 1000) -> Evaluated:
    """Return a row of an evaluation; a client's tier is what its name ends with, after a dash."""
    each = [
        {"client": client, "tier": client.partition("-")[2], "accuracy": accuracy, "tested": 10 + i}
        for i, (client, accuracy) in enumerate(accuracies.items())
    ]
    found = spread(list(accuracies.values()))
    tiers = by_tier(((one["tier"], one["accuracy"]) for one in each if one["tier"]), ACCURACY)
    clients = {**found, "tiers": {tier: object_of(one) for tier, one in tiers.items()}, "each": each}
    accuracy = found["mean"] if server is None else server
    return evaluated({"name": name, "macs": macs, "accuracy": accuracy, "clients": clients})


def plain(name: str, accuracy: float) -> Evaluated:
    return evaluated({"name": name, "accuracy": accuracy})


def round_of(number: int, *rows: Evaluated) -> RoundEvent:
    return replace(event({"round": number}), evaluation=rows or None)


def test_the_worst_tenth_is_rounded_up() -> None:
    found = Spread.of([0.1 * i for i in range(11)], ACCURACY)
    assert found.worst_decile == pytest.approx(0.05) and found.worst == 0.0 and found.best == pytest.approx(1)
    assert Spread.of([0.5], ACCURACY) == Spread(clients=1, mean=0.5, std=0.0, worst=0.5, worst_decile=0.5, best=0.5)
    assert Spread.of([0.25, 0.75], ACCURACY).std == 0.25, "of a population"


def test_of_a_metric_that_is_better_lower_the_highest_is_the_worst() -> None:
    error = Metric("error", "Mean error", "Mean errors", unit="", higher=False)
    found = Spread.of([3.0, *[1.0] * 10], error)
    assert (found.worst, found.worst_decile, found.best) == (3.0, 2.0, 1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_the_worst_tenth_lies_between_worst_and_mean(accuracies: list[float]) -> None:
    found = Spread.of(accuracies, ACCURACY)
    assert found.worst - 1e-12 <= found.worst_decile <= found.mean + 1e-12 <= found.best + 2e-12
    assert found.mean == pytest.approx(statistics.mean(accuracies))


def test_tiers_stand_from_poor_to_rich() -> None:
    assert in_order(["max", "2M", "no limit", "500k", "min"]) == ["min", "500k", "2M", "max", "no limit"]
    assert in_order(["6.302 M MACs", "900 k MACs", "10 M MACs"]) == ["900 k MACs", "6.302 M MACs", "10 M MACs"]
    assert in_order(["70%", "max", "30%", "min"]) == ["min", "30%", "70%", "max"]
    assert in_order(["20ms", "5ms", "..", "", "²"]) == ["5ms", "20ms", "", "..", "²"]
    assert list(by_tier([("max", 1.0), ("1M", 0.5), ("max", 0.0)], ACCURACY)) == ["1M", "max"]


def test_a_line_of_the_terminal_names_each_figure_once() -> None:
    both = [row("phone", {"a": 0.8, "b": 1.0}, server=0.923), row("tablet", {"a": 0.9, "b": 0.9}, server=0.95)]
    assert brief(both, ACCURACY) == ["phone 92.3% (clients 90.0%, worst tenth 80.0%)", "tablet 95.0% (90.0%, 90.0%)"]
    alone = [row("phone", {"a": 0.8, "b": 1.0}), row("tablet", {"a": 0.9})]
    assert brief(alone, ACCURACY) == ["phone 90.0% (worst tenth 80.0%)", "tablet 90.0% (90.0%)"]
    assert brief([plain("phone", 0.5), *both[:1]], ACCURACY) == [
        "phone 50.0%", "phone 92.3% (clients 90.0%, worst tenth 80.0%)",
    ]  # fmt: skip
    assert brief([], ACCURACY) == []


def test_who_tested_a_network() -> None:
    assert by_clients(row("own", {"a": 0.1, "b": 0.2, "c": 0.4}, macs=None), ACCURACY)
    assert not by_clients(row("phone", {"a": 0.1}, server=0.2), ACCURACY)
    assert not by_clients(plain("phone", 0.5), ACCURACY)


def test_the_last_trial_and_its_single_clients() -> None:
    tried = [
        row("own", {"a": 0.1}, macs=None),
        row("big", {"b": 0.9}, macs=9),
        row("small", {"a": 0.3, "b": 0.4}, macs=5),
    ]
    other = plain("other", 0.1)
    rounds = [round_of(2, *tried[1:]), round_of(4, *tried, other), round_of(5), round_of(6, other)]
    number, rows = last(rounds)
    assert number == 4 and [found.name for found in rows] == ["own", "big", "small"]
    assert {name: one.metrics["accuracy"] for name, one in singles(rows).items()} == {"a": 0.3, "b": 0.9}, (
        "of the largest"
    )
    assert last(rounds[3:]) == last([]) == (0, ())


def test_words_on_the_images() -> None:
    found = row("phone", {"a": 0.8, "b": 1.0})
    assert images([found]) == "on images of their own that they never train on (10 to 11 each)"
    assert found.clients
    assert "also trained on" in images([replace(found, clients=replace(found.clients, held_out=False))])


def test_the_table_of_networks_and_tiers() -> None:
    table = by_network([
        row("phone", {"a-1M": 0.5, "b-1M": 0.7, "c-max": 1.0}), row("workstation", {"c-max": 0.9}, macs=2_500_000),
    ], ACCURACY)  # fmt: skip
    assert table.head[:3] == ("Network", "Tier", "MACs") and table.words == 2
    assert table.rows == (
        ("phone", "all", "1 k", "3", "73.3 %", "50.0 %", "50.0 %", "100.0 %", "20.5"),
        ("", "1M", "", "2", "60.0 %", "50.0 %", "50.0 %", "70.0 %", "10.0"),
        ("", "max", "", "1", "100.0 %", "100.0 %", "100.0 %", "100.0 %", "0.0"),
        ("workstation", "max", "2.50 M", "1", "90.0 %", "90.0 %", "90.0 %", "90.0 %", "0.0"),
    )
    table = by_network([row("own", {"a": 0.5, "b": 0.7}, macs=None)], ACCURACY)
    assert table.head[:2] == ("Network", "MACs") and table.rows[0][:3] == ("own", "–", "2")


def test_budgets_of_every_device_are_no_tiers() -> None:
    many = [Single(client="a", tier=f"{i}ms", metrics={}, loss=1.0, tested=1) for i in range(MOST_TIERS + 1)]
    assert tiers_of(many) == [] and len(tiers_of(many[1:])) == MOST_TIERS and tiers_of(many[:1]) == []
    table = by_network([row("phone", {f"c-{i}ms": 0.5 for i in range(MOST_TIERS + 1)})], ACCURACY)
    assert "Tier" not in table.head and len(table.rows) == 1


def test_the_table_of_evaluations() -> None:
    assert history([round_of(1), round_of(2)], ACCURACY) is None
    before = history(
        [round_of(1, plain("phone", 0.5)), round_of(3, plain("tablet", 0.7), plain("phone", 0.6))], ACCURACY
    )
    assert before and before.head == ("Round", "phone", "tablet")
    assert before.rows == (("1", "50.0 %", "–"), ("3", "60.0 %", "70.0 %"))
    both = history([round_of(1, row("phone", {"a": 0.8, "b": 1.0}, server=0.5), plain("tablet", 0.6))], ACCURACY)
    assert both and both.head[:4] == ("Round", "Network", "Server's validation", "Clients")
    assert both.rows[0] == ("1", "phone", "50.0 %", "2", "90.0 %", "80.0 %", "80.0 %", "100.0 %", "10.0")
    assert both.rows[1] == ("1", "tablet", "60.0 %", "–", "–", "–", "–", "–", "–")
    alone = history([round_of(1, row("phone", {"a": 0.8, "b": 1.0}))], ACCURACY)
    assert alone and "Server's validation" not in alone.head and alone.rows[0][2] == "2"
