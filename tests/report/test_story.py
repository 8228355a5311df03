from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fednas_core.show.read import RunData
from fednas_core.show.story import clients_story, headline, listed, number, stays

DONE: dict[str, Any] = {"method": "fedper", "models": [], "clients": []}
MODEL = {"device": "phone", "budget": "1 M MACs", "arch": {}, "validation_accuracy": 0.9, "test_accuracy": 0.8,
         "macs": 1e6, "params": 1, "bytes": 4}  # fmt: skip


def run(result: dict[str, Any] | None, **settings: Any) -> RunData:
    return RunData(Path("r"), settings, {}, (event(),), {}, None, result, ())


def event(evaluation: Any = None) -> dict[str, Any]:
    return {"round": 1, "accuracy": 0.5, "clients": [{"client": "a"}, {"client": "b"}], "failures": [],
            "evaluation": evaluation}  # fmt: skip


def handed(accuracy: float, budget: str = "no limit", **more: Any) -> dict[str, Any]:
    return {"client": "a", "budget": budget, "reason": "", "accuracy": accuracy, "held_out": True} | more


def test_which_layers_stay() -> None:
    assert stays(run({**DONE, "personal": ["head"]})) == "the head"
    assert stays(run({**DONE, "personal": ["head", "stages.2"]})) == "the head and stages.2"
    assert stays(run({**DONE, "personal": []})) == ""
    assert stays(run(DONE)) == "", "a run of before there were such settings"
    assert stays(run(None)) == "", "a run that has not finished"


def test_a_personal_run_is_told_by_its_clients() -> None:
    rows = [handed(0.5 + 0.05 * i) for i in range(10)] + [{"client": "b", "budget": "x", "reason": "away"}]
    reached, story = headline(run({**DONE, "clients": rows, "personal": ["head"]}))
    assert reached.replace("\u00a0", " ") == "72.5 % on average over 10 clients, 50.0 % over the worst tenth"
    assert "1 round over 2 clients" in story and "nor did the head" in story
    assert "no complete network exists on the server" in story and "that it never trained on." in story
    _, story = headline(run({**DONE, "clients": [handed(1.0, held_out=False)], "personal": ["head"]}))
    assert "of its own, also trained on" in story and "never trained on" not in story


def test_a_personal_run_that_handed_out_no_models() -> None:
    empty = run({**DONE, "personal": ["head"]})
    assert headline(empty)[0] == "fedper trained for 1 round over 2 clients; no client tested a network"
    clients = {"clients": 2, "mean": 0.75, "held_out": True, "each": [{"client": "a", "tested": 9}]}
    tried = replace(empty, rounds=(event([{"name": "network", "macs": 1, "accuracy": 0.75, "clients": clients}]),))
    reached, story = headline(tried)
    assert reached == "network 75.0 % on average over the clients"
    assert "at the last evaluation, on images of their own that they never train on (9 each)" in story


def test_other_runs_are_told_by_their_models() -> None:
    reached, story = headline(run({**DONE, "models": [MODEL], "clients": [handed(0.5)]}))
    assert reached.replace("\u00a0", " ") == "phone 80.0 % at 1 M MACs" and "on the test set" in story
    assert "of its own" not in story
    _, story = headline(run({**DONE, "models": [MODEL], "clients": [handed(0.5)]}, **{"personal.arch": True}))
    assert "an architecture of its own" in story and "50.0" in story
    assert headline(run(DONE))[0] == "fedper trained for 1 round over 2 clients and chose no model"
    assert headline(run(None, method="fedavg"))[0].startswith("fedavg has trained for 1 round over 2 clients;")


def test_how_the_networks_of_a_supernet_were_found_is_told() -> None:
    for by, told in (("accuracy", "searched by accuracy measured on validation"), ("fitness", "searched by a fitness")):
        assert told in headline(run({**DONE, "models": [MODEL], "search": by}))[1]
    assert "it was searched and left" in headline(run({**DONE, "models": [MODEL]}))[1]


def test_the_spread_over_clients_and_budgets() -> None:
    rows = [handed(0.4, "2 M MACs"), handed(0.6, "2 M MACs"), handed(1.0, "500 k MACs"), {"reason": "away"}]
    text = clients_story(rows).replace("\u00a0", " ")
    assert text.startswith("3 clients of 4 run a model of their own: accuracy there 66.7 % on average, 40.0 % over the")
    assert "standard deviation of 24.9 points" in text
    assert text.endswith("500 k MACs 100.0 % (100.0 %) and 2 M MACs 50.0 % (40.0 %).")
    assert "By budget" not in clients_story([handed(0.4), handed(0.6)])
    assert "images they trained on" in clients_story([handed(0.4, held_out=False)])
    assert clients_story([{"reason": "away"}]) == "No client could be handed a model."


def test_words() -> None:
    assert listed([]) == "" and listed(["a"]) == "a" and listed(iter(["a", "b", "c"])) == "a, b and c"
    assert number(1, "round") == "1 round" and number(0, "round") == "0 rounds"
