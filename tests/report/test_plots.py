from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from contracts.records import event

from fednas_core.base.metrics import ACCURACY, Metric
from fednas_core.runs.record import Single
from fednas_core.show import panel, plots
from fednas_core.show.read import RunData, read_run

WriteRun = Callable[..., Path]


@pytest.fixture(scope="module")
def run(write_run: WriteRun, tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return read_run(write_run(tmp_path_factory.mktemp("runs") / "r1"))


def texts(svg: str) -> list[str]:
    """Return the texts of a plot; that it parses shows that it is well formed."""
    return [node.text or "" for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("}text")]


def test_chosen_models_are_named_with_their_accuracy(run: RunData) -> None:
    for plot, axis in (
        (plots.against_macs, "million MACs of one image"),
        (plots.against_params, "thousand parameters"),
    ):
        found = texts(plot(run.frontier or (), run.models, ACCURACY, "Validation accuracy, %"))
        assert axis in found and "Validation accuracy, %" in found
        for model in run.models:
            assert f"{model.device}: {ACCURACY.text(ACCURACY.of(model.validation))}" in found


def test_a_metric_without_a_unit_is_drawn_by_its_own_values(run: RunData) -> None:
    error = Metric("accuracy", "Mean error", "Mean errors", unit="", higher=False)
    found = texts(plots.learning_curves(run.rounds, error))
    assert "Mean error" in found and not any("%" in text for text in found)
    worst = [name for name, _ in plots.ranked(singles_of(0.2, 0.5, 0.1), error)]
    assert worst == ["b", "a", "c"], "the lower the better"


def singles_of(*values: float) -> dict[str, Single]:
    rows = [Single(client=name, tier="", metrics={"accuracy": value}, loss=1.0, tested=1)
            for name, value in zip("abc", values, strict=True)]  # fmt: skip
    return {row.client: row for row in rows}


def test_every_plot_names_its_axes_and_unit(run: RunData) -> None:
    assert "Accuracy, %" in texts(plots.learning_curves(run.rounds, ACCURACY))
    assert {"phone", "tablet", "workstation"} < set(texts(plots.learning_curves(run.rounds, None)))
    assert "Payload, MB a round" in texts(plots.traffic(run.rounds))
    assert "All clients' compute, billion MACs a round" in texts(plots.compute(run.rounds))
    assert "Training accuracy of single clients, %" in texts(plots.spread_over_rounds(run.rounds, ACCURACY))
    assert "training examples on the client" in texts(plots.spread_over_clients(run.rounds, ACCURACY))


def test_only_the_clients_that_fare_worst_are_named(write_run: WriteRun, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r1", rounds=1, clients=60, name="-device", done=False))
    named = [text for text in texts(plots.spread_over_clients(run.rounds, ACCURACY)) if "-device" in text]
    worst = sorted(run.rounds[-1].clients, key=lambda row: row.metrics["accuracy"] or 0.0)[: plots.NAMED]
    assert sorted(named) == sorted(row.client for row in worst)


def test_what_clients_found_is_drawn_by_network_and_by_tier(write_run: WriteRun, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r1", tested="beside"))
    curves, single = texts(plots.trial_curves(run.rounds, ACCURACY)), texts(plots.trial_clients(run.rounds, ACCURACY))
    assert {"phone", "tablet", "workstation", "worst tenth", "round"} <= set(curves)
    assert {"0.5M", "1.5M", "max", "worst tenth", "clients, from worst to best"} <= set(single)
    assert "Accuracy of single clients after round 30, %" in single
    svg = plots.trial_clients(run.rounds, ACCURACY)
    assert all(f"var(--series-{i})" in svg for i in range(3)) and "var(--series-3)" not in svg


def test_clients_of_no_tier_have_one_colour_and_no_name(write_run: WriteRun, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r1", clients=1, tested="alone"))
    assert not {"0.5M", "no budget"} & set(texts(plots.trial_clients(run.rounds, ACCURACY)))
    assert "phone" in texts(plots.trial_curves(run.rounds, ACCURACY)) and "tablet" not in texts(
        plots.trial_curves(run.rounds, ACCURACY)
    )


def test_more_rounds_than_bars(write_run: WriteRun, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r1", rounds=120, clients=3, done=False))
    assert len(plots.traffic(run.rounds)) < 80_000
    assert "120" in texts(plots.compute(run.rounds)) or "100" in texts(plots.compute(run.rounds))


def test_nothing_to_show_is_nothing() -> None:
    assert plots.against_macs((), (), ACCURACY, "") == ""
    assert plots.learning_curves((), None) == ""
    assert plots.trial_curves([event({"evaluation": [{"name": "phone", "accuracy": 0.5}]})], ACCURACY) == ""
    assert plots.trial_curves((), ACCURACY) == plots.trial_clients((), ACCURACY) == ""
    assert (
        plots.traffic(())
        == plots.compute(())
        == plots.spread_over_rounds((), ACCURACY)
        == plots.spread_over_clients((), ACCURACY)
        == ""
    )


def test_rounds_in_which_everybody_failed_or_diverged() -> None:
    nan = float("nan")
    lost = event({"loss": nan, "accuracy": nan})
    assert "round" in texts(plots.learning_curves([lost], None))
    assert "Payload, B a round" in texts(plots.traffic([lost]))
    assert plots.compute([lost])
    assert plots.spread_over_rounds([lost], ACCURACY) == plots.spread_over_clients([lost], ACCURACY) == ""


def test_hostile_names_stay_text(hostile: str, run: RunData) -> None:
    models = [replace(run.models[0], device=hostile)]
    svg = plots.against_macs(run.frontier or (), models, ACCURACY, "")
    assert "<script" not in svg
    assert any(text.startswith("<script>") for text in texts(svg))


def test_plots_take_colours_and_font_from_the_page(run: RunData) -> None:
    svg = plots.learning_curves(run.rounds, ACCURACY)
    for colour in panel.VARIABLES:
        assert colour not in svg
    assert "var(--series-0)" in svg
    assert "DejaVu" not in svg
    assert set(re.findall(r'https?://[^"]*', svg)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_plots_are_the_same_every_time_and_share_no_ids(run: RunData) -> None:
    first, second = (plots.traffic(run.rounds) for _ in range(2))
    assert first == second
    other = plots.compute(run.rounds)
    assert not ids(first) & ids(other)
    assert ids(first)


def ids(svg: str) -> set[str]:
    return {node.attrib["id"] for node in ElementTree.fromstring(svg).iter() if "id" in node.attrib}


def test_names_are_cut_to_one_short_line() -> None:
    assert panel.short("a\n b") == "a b"
    assert panel.short("x" * 30, 10) == "x" * 9 + "…"
    assert panel.short("_hidden") == " _hidden", "a legend drops names that begin with an underscore"


def test_scales() -> None:
    assert panel.scale(2_500_000) == (1e6, "M", "million")
    assert panel.scale(999) == (1.0, "", "")
