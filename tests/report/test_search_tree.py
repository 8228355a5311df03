"""The tree of a search from the events that tell of it, and what report and terminal say of such runs."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from contracts.records import event as made
from contracts.records import head, model, result

from fednas_core.base.metrics import ACCURACY
from fednas_core.base.typed import to_json
from fednas_core.methods.story import Other
from fednas_core.runs.record import RoundEvent
from fednas_core.search.ledger import Design
from fednas_core.show import searched, treeplot
from fednas_core.show.read import RunData, read_run
from fednas_core.show.search import (
    Effort,
    RankedAt,
    effort,
    iteration_of,
    iterations_of,
    leaders,
    rewards,
    searches,
    tree,
    tree_of,
)
from fednas_core.show.stage import going_on
from fednas_core.show.story import headline
from fednas_core.show.view import view_of
from fednas_core.show.write import write

Event = dict[str, Any]
"""An event as JSON."""
Trained = dict[str, list[str]]
"""Which clients trained each network in a round."""
COST = 1000


def event(number: int, trained: Trained, failed: tuple[str, ...] = (), **told: Any) -> Event:
    rows = [
        {"client": client, "network": label, "role": "candidate", "tier": "",
         "macs": COST, "params": 10, "examples": 5, "loss": 1.0, "accuracy": 0.5,
         "client_macs": 3 * COST, "seconds": 0.5, "bytes_up": 40, "bytes_down": 60}
        for label, clients in trained.items() for client in clients
    ]  # fmt: skip
    return {"round": number, "loss": 1.0, "accuracy": 0.5, "bytes_up": 40 * len(rows), "bytes_down": 60 * len(rows),
            "client_macs": 3 * COST * len(rows), "seconds": 1.0, "clients": rows, "evaluation": None,
            "failures": [{"client": client, "reason": "gone"} for client in failed],
            "search": {"alive": [], "over": False} | told}  # fmt: skip


def start(number: int, of: int, **told: Any) -> Event:
    trained = {"start": ["a", "b", "c", "d"]}
    return event(number, trained, stage="start", iteration=0, round=number, of=of, **told)


def compete(number: int, iteration: int, done: int, of: int, alive: list[str], trained: Trained, **told: Any) -> Event:
    return event(number, trained, told.pop("failed", ()), stage="compete", iteration=iteration, round=done, of=of,
                 alive=alive, **told)  # fmt: skip


def candidate(label: str, parent: str, macs: int) -> dict[str, Any]:
    return {"network": label, "parent": parent, "arch": {"w": [macs], "k": []}, "shape": f"{macs} · 8", "macs": macs,
            "params": macs // 10, "bytes": macs // 10 * 4}  # fmt: skip


def found(**accuracies: float) -> list[dict[str, Any]]:
    """Return a test, best first; ``n1_2`` is network 1.2."""
    best = max(accuracies.values())
    named = {name.removeprefix("n").replace("_", "."): accuracy for name, accuracy in accuracies.items()}
    return [
        {"network": label, "accuracy": accuracy, "gap": best - accuracy, "se": 0.0 if accuracy == best else 0.02}
        for label, accuracy in sorted(named.items(), key=lambda item: -item[1])
    ]


@pytest.fixture
def events() -> list[Event]:
    """Two iterations: of four candidates two are dropped, one loses; in the second one fails to train in a round."""
    first = [candidate(f"1.{i}", "start", 900 - i) for i in (1, 2, 3, 4)]
    second = [candidate("2.1", "1.2", 800), candidate("2.2", "1.2", 790)]
    four = [one["network"] for one in first]
    return [
        start(1, 2),
        start(2, 2, tests=found(start=0.9), dropped=[], candidates=first, resource="macs", takes=1000.0),
        compete(3, 1, 1, 2, four, {"1.1": ["a"], "1.2": ["b"], "1.3": ["c"], "1.4": ["d"]},
                tests=found(n1_1=0.5, n1_2=0.7, n1_3=0.6, n1_4=0.4),
                dropped=[{"network": "1.1", "reason": "20.0 points behind 1.2 (SE 2.0)"},
                         {"network": "1.4", "reason": "no client trained and tested it"}]),
        compete(4, 1, 2, 2, ["1.2", "1.3"], {"1.2": ["a"], "1.3": ["b"]}, tests=found(n1_2=0.8, n1_3=0.75), dropped=[],
                winner="1.2", resource="macs", takes=898.0, candidates=second),
        compete(5, 2, 1, 2, ["2.1", "2.2"], {"2.1": ["a", "b"]}, failed=("c", "d")),
        compete(6, 2, 2, 2, ["2.1", "2.2"], {"2.1": ["a", "c"], "2.2": ["b", "d"]}, tests=found(n2_1=0.7, n2_2=0.7),
                dropped=[], winner="2.1", resource="macs", takes=800.0),
        event(7, {"2.1": ["a", "b", "c", "d"]}, stage="finish", iteration=2, round=1, of=1, finishing="2.1") ,
    ]  # fmt: skip


@pytest.fixture
def students() -> list[Event]:
    """A policy: the second iteration has no new student, and in the third another than the most accurate leads."""
    news = {"mean": 0.1, "best": 0.2, "new": 2}
    return [
        start(1, 1, tests=found(start=0.9), dropped=[], rewards=[], leader="start", scores={}, accuracy=0.9,
              reward=None, start=candidate("start", "", 1230),
              candidates=[candidate("1.1", "start", 700), candidate("1.2", "start", 500)]),
        compete(2, 1, 1, 1, ["1.1", "1.2"], {"1.1": ["a"], "1.2": ["b"]}, tests=found(n1_1=0.8, n1_2=0.6), dropped=[],
                winner="1.1", leader="1.1", accuracy=0.8, reward=0.2,
                family=["start", "1.2", "1.1"], scores={"1.1": 0.2, "1.2": 0.05},
                rewards=[{"iteration": 1, **news}, {"iteration": 2, **news, "mean": 0.2, "new": 0}],
                candidates=[candidate("3.1", "start", 600), candidate("3.2", "start", 300)]),
        compete(3, 3, 1, 1, ["3.1", "3.2"], {"3.1": ["a"], "3.2": ["c"]}, tests=found(n3_1=0.8, n3_2=0.7), dropped=[],
                winner="3.1", leader="3.2", accuracy=0.7, reward=0.5,
                family=["start", "1.1", "3.2"], scores={"3.1": 0.1, "3.2": 0.5},
                rewards=[{"iteration": 3, "mean": 0.3, "best": 0.5, "new": 2}], over=True),
    ]  # fmt: skip


def typed(events: list[Event], kind: str = "netadapt") -> list[RoundEvent]:
    """Return the events of a search of this kind."""
    return [made(one, kind) for one in events]


def going(event: Event, kind: str = "netadapt") -> str:
    return going_on(made(event, kind), ACCURACY)


def folder(path: Path, events: list[Event], method: str = "fednas") -> Path:
    path.mkdir()
    (path / "config.toml").write_text(f'method = "{method}"\nrounds = 2\n')
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def finished(path: Path) -> Path:
    points = [
        {"arch": {}, "macs": m, "params": 9, "bytes": 36, "fitness": None, "validation_accuracy": m / 1000,
         "on_frontier": True} for m in (800, 898)
    ]  # fmt: skip
    (path / "frontier.json").write_text(json.dumps(points))
    one = model(budget="1 k MACs", budget_macs=1000, macs=800, params=9, bytes=36)
    (path / "result.json").write_text(json.dumps(to_json(result([one], method=""))))
    return path


# -- the tree ----------------------------------------------------------------------------------------------------------


def test_an_iteration_of_which_nothing_is_known_is_told_as_such(events: list[Event]) -> None:
    unknown = compete(4, 1, 2, 2, ["1.2", "1.3"], {"1.2": ["a"]}, tests=[], dropped=[], winner=None, family=["start"],
                      resource="macs", takes=1000.0)  # fmt: skip
    told = [*events[:3], unknown]
    fates = {row.network: (row.outcome, row.reason) for row in tree_of(typed(told))}
    assert fates["1.2"] == fates["1.3"] == ("lost", "no client trained and tested it")
    assert leaders(typed(told)) == ["start"] and going(unknown) == "iteration 1: no candidate was trained and tested"


def test_every_candidate_has_its_parent_its_trainers_and_its_fate(events: list[Event]) -> None:
    rows = {row.network: row for row in tree_of(typed(events))}
    assert list(rows) == ["start", "1.1", "1.2", "1.3", "1.4", "2.1", "2.2"]
    fates = {label: (row.parent, row.iteration, row.outcome, row.ended, row.reason) for label, row in rows.items()}
    assert fates == {
        "start": ("", 0, "start", None, ""),
        "1.1": ("start", 1, "dropped", 3, "20.0 points behind 1.2 (SE 2.0)"),
        "1.2": ("start", 1, "winner", 4, ""),
        "1.3": ("start", 1, "lost", 4, "5.0 points behind 1.2 (SE 2.0)"),
        "1.4": ("start", 1, "dropped", 3, "no client trained and tested it"),
        "2.1": ("1.2", 2, "winner", 6, ""),
        "2.2": ("1.2", 2, "lost", 6, "as good as 2.1, which costs no more"),
    }
    assert [(row.rounds, row.finishing, row.clients) for row in rows.values()] == [
        (2, 0, ("a", "b", "c", "d")), (1, 0, ("a",)), (2, 0, ("b", "a")), (2, 0, ("c", "b")), (1, 0, ("d",)),
        (2, 1, ("a", "b", "c", "d")), (1, 0, ("b", "d")),
    ]  # fmt: skip
    assert (rows["2.1"].client_macs, rows["2.1"].client_bytes, rows["2.1"].client_seconds) == (8 * 3 * COST, 800, 4.0)
    assert rows["1.2"].tests == (
        RankedAt(round=3, metrics={"accuracy": 0.7}, gap=0.0, se=0.0),
        RankedAt(round=4, metrics={"accuracy": 0.8}, gap=0.0, se=0.0),
    )
    assert rows["2.2"].shape == "790 · 8" and rows["2.2"].arch == {"w": [790], "k": []} and rows["2.2"].bytes == 316
    assert (rows["start"].macs, rows["start"].shape, rows["start"].bytes) == (COST, "", None)


def test_the_work_on_all_candidates_is_that_of_all_rows(events: list[Event]) -> None:
    rows = tree_of(typed(events))
    assert sum(row.client_macs for row in rows) == sum(event["client_macs"] for event in events)
    assert sum(row.client_bytes for row in rows) == sum(e["bytes_up"] + e["bytes_down"] for e in events)


def test_the_tree_is_json(events: list[Event]) -> None:
    rows = tree(typed(events))
    assert json.loads(json.dumps(rows)) == rows
    assert rows[1]["clients"] == ["a"] and rows[1]["arch"] == {"w": [899], "k": []} and rows[1]["ended"] == 3


def test_what_still_competes_has_no_fate_yet(events: list[Event]) -> None:
    rows = {row.network: row for row in tree_of(typed(events[:3]))}
    assert [rows[label].outcome for label in ("1.1", "1.2", "1.3")] == ["dropped", "running", "running"]
    assert rows["1.2"].ended is None and effort(typed(events[:3])) is None and leaders(typed(events[:3])) == ["start"]
    asked = {row.network: row for row in tree_of(typed(events[:4]))}["2.2"]
    assert (asked.outcome, asked.rounds, asked.clients, asked.tests) == ("running", 0, (), ())


def test_all_clients_train_candidate_after_candidate() -> None:
    """While one trains the others wait, which costs them no round."""
    everyone, alive = ["a", "b", "c"], ["1.1", "1.2"]
    told = [
        start(1, 1, tests=found(start=0.9), dropped=[], candidates=[candidate(one, "start", 5) for one in alive]),
        compete(2, 1, 0, 2, alive, {"1.1": everyone}),
        compete(3, 1, 1, 2, alive, {"1.2": everyone}),
        compete(4, 1, 1, 2, alive, {"1.1": everyone}),
        compete(5, 1, 2, 2, alive, {"1.2": everyone[:2]}, tests=found(n1_1=0.5, n1_2=0.6), dropped=[], winner="1.2"),
    ]
    assert [(row.rounds, row.outcome) for row in tree_of(typed(told))[1:]] == [(2, "lost"), (2, "winner")]
    assert [going(one) for one in told[1:3]] == [
        "iteration 1, 0/2 rounds done: 1.1 of 2 trained",
        "iteration 1, 1/2 rounds done: 1.2 of 2 trained",
    ]
    told[0]["clients"] = told[0]["clients"][:3]
    assert effort(typed(told)) == Effort(candidates=2, iterations=1, spent=11, straightforward=2 * 2 * 3)


def test_the_saving_is_that_of_the_closed_form() -> None:
    """Eight candidates of 16 clients, halved every round, with 2 and then 3 rounds."""
    design = Design(8, 16, (2, 3), 1, 0.5, parts=True)
    names, told, number = [f"c{i}" for i in range(16)], [], 1
    first = start(1, 1, tests=found(start=0.9), dropped=[], candidates=[candidate(f"1.{k}", "", 5) for k in range(8)])
    told.append(first)
    for iteration, rounds in enumerate(design.rounds, start=1):
        alive = [f"{iteration}.{k}" for k in range(8)]
        for done in range(1, rounds + 1):
            number += 1
            parts: Trained = {label: names[2 * k : 2 * k + 2] for k, label in enumerate(alive)}
            one = compete(number, iteration, done, rounds, alive, parts)
            if done == rounds:
                one["search"] |= {"winner": alive[0], "tests": [], "dropped": []}
                one["search"]["candidates"] = [candidate(f"2.{k}", "", 5) for k in range(8)] if iteration == 1 else []
            told.append(one)
            alive = alive[: len(alive) // 2]
    first["clients"] = [{**first["clients"][0], "client": name} for name in names]
    saved = effort(typed(told))
    assert saved == Effort(16, 2, design.client_rounds, design.straightforward.client_rounds)
    assert saved is not None and saved.saving == design.saving(design.straightforward) == 16 * 3 * 16 / (24 + 28)


def test_a_policy_keeps_what_is_rewarded_most(students: list[Event]) -> None:
    rows = {row.network: row for row in tree_of(typed(students, "ddc"))}
    assert {label: row.outcome for label, row in rows.items()} == {
        "start": "start", "1.1": "winner", "1.2": "winner", "3.1": "lost", "3.2": "winner",
    }  # fmt: skip
    assert rows["3.1"].reason == "", "it was more accurate, but rewarded less"
    assert (rows["3.2"].score, rows["3.1"].score, rows["start"].score) == (0.5, 0.1, None)
    assert (rows["start"].macs, rows["start"].shape, rows["start"].arch) == (1230, "1230 · 8", {"w": [1230], "k": []})
    assert leaders(typed(students, "ddc")) == ["start", "1.1", "3.2"]
    assert iterations_of(typed(students, "ddc")) == 3 and [row.mean for row in rewards(typed(students, "ddc"))] == [
        0.1,
        0.2,
        0.3,
    ]
    assert effort(typed(students, "ddc")) == Effort(candidates=4, iterations=3, spent=4, straightforward=4 * 4)


def test_runs_of_other_methods_have_no_tree() -> None:
    plain = made({"clients": [{"client": "a"}]})
    assert tree([plain]) == tree([]) == [] and searches([plain]) == [] and effort([plain]) is None
    assert leaders([plain]) == ["start"] and iterations_of([plain]) == 0
    assert searched.candidates([plain], ACCURACY) is None
    assert treeplot.search_tree([plain], ACCURACY) == treeplot.reward_curves([plain]) == going_on(plain, ACCURACY) == ""
    assert iteration_of("12.3") == 12 and iteration_of("start") == 0


def test_a_search_of_a_kind_that_nobody_here_knows_is_told_plainly(events: list[Event], tmp_path: Path) -> None:
    """What a plugin's search tells beyond the others, ``heat``, stays in the record and is in nobody's way."""
    for one in events:
        one["search"] |= {"heat": 3} if "takes" in one["search"] else {}
    race = typed(events, "race")
    assert race[3].search and isinstance(race[3].search.own, Other) and race[3].search.own.values["heat"] == 3
    again = made({**race[3].to_json()}, "race")
    assert again == race[3], "what is read is written as it is"
    assert going_on(race[3], ACCURACY) == "iteration 1: winner 1.2"
    assert searched.told(race).endswith("Networks that won are joined by the bold line and named with their MACs.")
    assert searched.terms(race, ACCURACY).startswith("Won: the best of its iteration.")
    assert "and 6 others competed in 2 iterations" in searched.made(race, "race", "7 rounds")
    assert [row.outcome for row in tree_of(race)][:3] == ["start", "dropped", "winner"]
    path = finished(folder(tmp_path / "r1", [one.to_json() for one in race], "race"))
    (path / "config.toml").write_text(tomli_w.dumps({**head("race").to_json(), "settings": {"method": "race"}}))
    page = write(path).read_text()
    assert "<h2>The search</h2>" in page and "A network of 1 k MACs was trained with race" in page


# -- a round in a few words --------------------------------------------------------------------------------------------


def test_a_round_in_a_few_words(events: list[Event], students: list[Event]) -> None:
    assert [going(one) for one in events] == [
        "start 1/2",
        "start 2/2, 90.0% where tested",
        "iteration 1, round 1/2: 2 of 4 dropped",
        "iteration 1: winner 1.2 at 898 MACs",
        "iteration 2, 1/2 rounds done: 2.1 of 2 trained",
        "iteration 2: winner 2.1 at 800 MACs",
        "finish 2.1 1/1",
    ]
    assert going(students[1], "ddc") == "iteration 1: reward mean 0.2 best 0.2"
    scored = compete(9, 2, 1, 1, ["2.1"], {"2.1": ["a"]}, tests=[], winner="2.1", family=["start", "1.1"], score=0.5123,
                     scores={})  # fmt: skip
    assert going(scored, "evolution") == "iteration 2: leader 1.1, score 0.512"
    whole = compete(3, 4, 1, 3, ["4.1", "4.2"], {"4.1": ["a"], "4.2": ["b"]})
    assert going(whole) == "iteration 4, round 1/3: 2 candidates"
    assert going(compete(3, 4, 1, 3, ["4.1"], {"4.1": ["a"]})).endswith(": 1 candidate")


@pytest.mark.parametrize(
    ("resource", "takes", "told"),
    [("params", 58_298.0, "58.3 k params"), ("bytes", 2e6, "2 MB"), ("ms", 0.213, "0.213 ms")],
)
def test_what_a_winner_takes_is_told_in_its_unit(resource: str, takes: float, told: str) -> None:
    one = compete(3, 1, 1, 1, ["1.1"], {"1.1": ["a"]}, tests=[], winner="1.1", resource=resource, takes=takes)
    assert going(one) == f"iteration 1: winner 1.1 at {told}"


# -- the report --------------------------------------------------------------------------------------------------------


def texts(svg: str) -> list[str]:
    return [(node.text or "").strip() for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("}text")]


def test_the_plot_names_what_won(events: list[Event], students: list[Event]) -> None:
    named = texts(treeplot.search_tree(typed(events), ACCURACY))
    assert {"1.2", "898", "2.1", "800", "start", "1 k", "dropped early", "lost", "won", "iteration"} <= set(named)
    assert not {"1.3", "1.1", "in the race"} & set(named)
    assert "in the race" in texts(treeplot.search_tree(typed(events[:3]), ACCURACY))
    assert treeplot.search_tree(typed(events[:1]), ACCURACY) == "", "nothing was tested"
    assert treeplot.reward_curves(typed(events)) == ""
    assert {"Reward", "best of the iteration", "mean of the iteration"} <= set(
        texts(treeplot.reward_curves(typed(students, "ddc")))
    )
    assert "dropped early" not in texts(treeplot.search_tree(typed(students, "ddc"), ACCURACY))


def test_lines_begin_where_the_parent_ended(events: list[Event], students: list[Event]) -> None:
    curves = treeplot._curves(typed(events), tree_of(typed(events)), ACCURACY)
    assert curves["1.1"] == [(0.0, 0.9), (0.5, 0.5)] and curves["2.2"] == [(1.0, 0.8), (2.0, 0.7)]
    assert curves["1.2"] == [(0.0, 0.9), (0.5, 0.7), (1.0, 0.8)] and curves["start"] == [(0.0, 0.9)]
    assert treeplot._curves(typed(students, "ddc"), tree_of(typed(students, "ddc")), ACCURACY)["1.1"] == [(1.0, 0.8)], (
        "all are made of the start"
    )


def test_the_table_of_candidates(events: list[Event], students: list[Event]) -> None:
    table = searched.candidates(typed(events), ACCURACY)
    assert table is not None and table.head == (*searched.HEAD, "Accuracy ± SE") and table.words == 4
    rows = {row[0]: tuple(cell.replace("\u00a0", " ") for cell in row[1:]) for row in table.rows}
    assert rows["start"] == ("–", "–", "what all began with", "1 k", "4", "2", "90.0 %")
    assert rows["1.1"] == ("start", "899 · 8", "dropped after round 3: 20.0 points behind 1.2 (SE 2.0)", "899", "1",
                           "1", "50.0 % ± 2.0")  # fmt: skip
    assert rows["1.3"][2:] == ("lost: 5.0 points behind 1.2 (SE 2.0)", "897", "2", "2", "75.0 % ± 2.0")
    assert rows["2.1"][2:] == ("won; trained on for 1 round", "800", "4", "2", "70.0 %")
    waiting = searched.candidates(typed(events[:4]), ACCURACY)
    assert waiting is not None and waiting.rows[-1][3:] == ("competes", "790", "–", "–", "–")
    rewarded = searched.candidates(typed(students, "ddc"), ACCURACY)
    assert rewarded is not None and rewarded.head[-1] == "Reward"
    assert [row[-1] for row in rewarded.rows] == ["–", "0.2", "0.05", "0.1", "0.5"]


def test_a_long_table_is_cut_but_for_winners(events: list[Event]) -> None:
    many = [candidate(f"1.{i}", "start", 900) for i in range(1, 100)]
    events[1]["search"]["candidates"] = many
    events[3]["search"] |= {"alive": ["1.98", "1.99"], "winner": "1.99", "tests": found(n1_98=0.7, n1_99=0.8)}
    events[3]["search"]["candidates"], events[4:] = [], []
    table = searched.candidates(typed(events), ACCURACY)
    assert table is not None and len(table.rows) == searched.MOST_ROWS
    assert [row[0] for row in table.rows][-2:] == ["1.58", "1.99"] and table.rows[-1][3] == "won"
    assert searched.terms(typed(events), ACCURACY).endswith("The table shows 60 of 100 networks; search.json has all.")


def test_what_a_search_amounted_to(events: list[Event], students: list[Event]) -> None:
    text = searched.told(typed(events))
    assert text.startswith(
        "6 candidates in 2 iterations; 12 client-rounds of training where the straightforward design (every client "
        "trains every candidate in every round) would have taken 48: 4 times less. "
    )
    assert searched.told(typed(events[:3])).startswith("Networks that won are joined")
    assert "begin at the winner" in text and "begin at the winner" not in searched.told(typed(students, "ddc"))
    assert searched.terms(typed(events), ACCURACY).startswith(
        "Won: the most accurate"
    ) and "highest reward" in searched.terms(typed(students, "ddc"), ACCURACY)
    assert searched._times(52.562) == "52.6" and searched._times(1234.4) == "1,234"


def test_a_search_that_saves_nothing_does_not_boast(students: list[Event]) -> None:
    students[0]["clients"] = students[0]["clients"][:1]
    for one in students[1:]:
        for row in one["clients"]:
            row["client"] = "a"
    assert "would have taken 4. Networks" in searched.told(typed(students, "ddc"))


def test_the_page_tells_the_search(events: list[Event], tmp_path: Path) -> None:
    page = write(finished(folder(tmp_path / "r1", events))).read_text()
    assert page.index("<h2>The search</h2>") < page.index("<h2>Accuracy against cost</h2>")
    assert "A family of 3 networks, from 1 k MACs down to 800 MACs, was made with fednas: 6 candidates competed" in page
    assert "One supernet" not in page and "The supernet&#39;s" not in page and "The network that the search" in page
    assert "those that are delivered trained on for 1 round, the others did not" in page
    assert '<div class="plots one">' in page and page.index('<div class="plots one">') < page.index("dropped after")
    text = (tmp_path / "r1" / "report.md").read_text()
    assert "## The search" in text and "4 times less" in text and "| 1.1 | start |" in text and "Won: the most" in text


def test_stories_of_the_three_searches(
    events: list[Event], students: list[Event], run_of: Callable[[list[Event], str], RunData]
) -> None:
    _, story = headline(run_of(events, "fednas"))
    assert story.endswith("; it took 7 rounds over 4 clients, who kept their images. The search left one network. "
                          "Accuracies are those on the test set.")  # fmt: skip
    _, story = headline(run_of(students, "ddc"))
    assert story.startswith("A teacher of 1.23 k MACs was trained with ddc, and 4 students with fewer layers "
                            "competed in 3 iterations; it took 3 rounds")  # fmt: skip
    for one in students:
        one["search"] |= {"score": 0.4}
        one["search"].pop("rewards")
    table = searched.candidates(typed(students, "evolution"), ACCURACY)
    assert table is not None and table.head[-1] == "Score"
    told = searched.made(typed(students, "evolution"), "fednas", "3 rounds")
    assert told.startswith("A network of 1.23 k MACs was trained with fednas, and 4 smaller ones competed")


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[[list[Event], str], RunData]:
    def made(events: list[Event], method: str) -> RunData:
        return read_run(finished(folder(tmp_path / f"r{len(list(tmp_path.iterdir()))}", events, method)))

    return made


def test_an_unfinished_search_says_where_it_is(events: list[Event], tmp_path: Path) -> None:
    view = view_of(read_run(folder(tmp_path / "r1", events[:3])))
    assert view.story == "Where it is: iteration 1, round 1/2: 2 of 4 dropped."
    assert "The search" in [section.title for section in view.sections]
    assert not any("supernet" in note for note in view.notes)
