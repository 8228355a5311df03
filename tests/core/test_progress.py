"""How far a phase is, said now and then, and how long the rest takes, where that was measured."""

from __future__ import annotations

from typing import Any

import pytest
from contracts.fleets import Stopping

from fednas_core.base.progress import Progress, left
from fednas_core.base.settings import read
from fednas_core.cli.progress import display, going_by
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.run import conduct, settle


class Watch:
    """A clock that somebody sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def told(total: int, each_s: float) -> list[str]:
    said: list[str] = []
    watch = Watch()
    progress = Progress(said.append, "search", "networks judged", total, watch)
    for _ in range(total):
        watch.now += each_s
        progress.step()
    return said


def test_a_phase_of_a_moment_says_nothing_and_a_long_one_little() -> None:
    assert told(100, 0.04) == []
    assert told(4, 5.0)[:2] == [
        "search: 1 of 4 networks judged, about 15 s left",
        "search: 2 of 4 networks judged, about 10 s left",
    ]
    assert told(4, 5.0)[-1] == "search: 4 of 4 networks judged"
    assert len(told(3600, 1.0)) < 60


def test_what_nobody_knows_is_not_said() -> None:
    assert left(10.0, 5, 10) == ", about 10 s left"
    assert left(0.0, 0, 10) == left(10.0, 5, None) == left(10.0, 10, 10) == left(10.0, 12, 10) == ""


def test_what_a_run_says_is_found_in_its_lines() -> None:
    assert going_by("export: device 2 of 3, tablet, about 4 s left") == "export: device 2 of 3, tablet, about 4 s left"
    assert going_by("round   3/40  training loss 1.2 …, about 2 min 05 s left") == "training, about 2 min 05 s left"
    assert going_by("round  40/40  training loss 1.2") == going_by("INFO : starting") == ""
    assert going_by("report:     /runs/x/report.html") == "", "where the report is tells nothing of the time to come"


def test_a_run_says_how_long_it_takes_in_every_phase(
    tiny_pairs: dict[str, Any], light: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fednas_core.base.progress.EVERY_S", 0.0)
    monkeypatch.setattr("fednas_core.base.progress.SHARE", 0.0)
    said: list[str] = []
    config = settle(read({**tiny_pairs, "method": "superfednas", "search.population": 4, "search.generations": 1}))
    conduct(config, LocalFleet(config), said.append)
    rounds = [line for line in said if line.startswith("round")]
    assert [going_by(line).startswith("training, about") for line in rounds] == [True, False]
    phases = [line for line in said if line not in rounds and going_by(line)]
    wanted = ("search: 1 of 16 networks measured at most", "networks judged", "export: device 1 of 2, phone",
              "export: device 2 of 2, server, about", "hand-over: 4 of 4 clients", "report: writing it")  # fmt: skip
    for part in wanted:
        assert any(part in line for line in phases), (part, phases)
    assert [line.split(":")[0] for line in phases] == sorted((line.split(":")[0] for line in phases), key=ORDER.index)


ORDER = ["search", "export", "hand-over", "report"]


def test_a_resumed_run_knows_its_pace_at_once(tiny_pairs: dict[str, Any], light: None) -> None:
    config = read({**tiny_pairs, "rounds": 4, "install": False})
    with pytest.raises(KeyboardInterrupt):
        conduct(config, Stopping(LocalFleet(config), 2), lambda text: None)
    said: list[str] = []
    again = settle(read({"output": tiny_pairs["output"], "resume": "latest"}))
    conduct(again, LocalFleet(again), said.append)
    assert going_by(next(line for line in said if line.startswith("round   3"))).endswith("left")


def test_the_view_of_a_simulation_shows_what_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with display(3) as view:
        view.now("training, about 5 s left")
        view.now("search: 1 of 9 networks judged")
    assert capsys.readouterr().out == "search: 1 of 9 networks judged\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with display(3) as view:
        view.now("hand-over: 5 of 9 clients, about 4 s left")
    assert "hand-over: 5 of 9 clients, about 4 s left" in capsys.readouterr().out
