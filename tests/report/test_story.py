from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from contracts.records import event, handed, head, model, result, without

from fednas_core.base.metrics import ACCURACY
from fednas_core.runs.record import Result
from fednas_core.show.read import RunData
from fednas_core.show.story import clients_story, headline, listed, number, stays

ROUND: dict[str, Any] = {"clients": [{"client": "a"}, {"client": "b"}]}


def run(result: Result | None, **settings: Any) -> RunData:
    return RunData(Path("r"), head(), settings, {}, (event(ROUND),), {}, None, result, ())


def test_which_layers_stay() -> None:
    assert stays(run(result(personal=["head"]))) == "the head"
    assert stays(run(result(personal=["head", "stages.2"]))) == "the head and stages.2"
    assert stays(run(result())) == ""
    assert stays(run(None)) == "", "a run that has not finished"


def test_a_personal_run_is_told_by_its_clients() -> None:
    rows = [handed(0.5 + 0.05 * i) for i in range(10)] + [without("away")]
    reached, story = headline(run(result(clients=rows, personal=["head"])))
    assert reached.replace("\u00a0", " ") == "72.5 % on average over 10 clients, 50.0 % over the worst tenth"
    assert "1 round over 2 clients" in story and "nor did the head" in story
    assert "no complete network exists on the server" in story and "that it never trained on." in story
    _, story = headline(run(result(clients=[handed(1.0, held_out=False)], personal=["head"])))
    assert "of its own, also trained on" in story and "never trained on" not in story


def test_a_personal_run_that_handed_out_no_models() -> None:
    empty = run(result(personal=["head"]))
    assert headline(empty)[0] == "fedper trained for 1 round over 2 clients; no client tested a network"
    clients = {"clients": 2, "mean": 0.75, "held_out": True, "each": [{"client": "a", "tested": 9}]}
    row = {"name": "network", "accuracy": 0.75, "clients": clients}
    tried = replace(empty, rounds=(event({**ROUND, "evaluation": [row]}),))
    reached, story = headline(tried)
    assert reached == "network 75.0 % on average over the clients"
    assert "at the last evaluation, on images of their own that they never train on (9 each)" in story


def test_other_runs_are_told_by_their_models() -> None:
    reached, story = headline(run(result([model()], [handed(0.5)])))
    assert reached.replace("\u00a0", " ") == "phone 80.0 % at 1 M MACs" and "on the test set" in story
    assert "of its own" not in story
    _, story = headline(run(result([model()], [handed(0.5)]), **{"personal.arch": True}))
    assert "an architecture of its own" in story and "50.0" in story
    assert headline(run(result()))[0] == "fedper trained for 1 round over 2 clients and chose no model"
    assert headline(run(None, method="fedavg"))[0].startswith("fedavg has trained for 1 round over 2 clients;")


def test_how_the_networks_of_a_supernet_were_found_is_told() -> None:
    for by, told in (("accuracy", "searched by accuracy measured on validation"), ("fitness", "searched by a fitness")):
        assert told in headline(run(result([model()], search=by)))[1]
    assert "it was searched and left" in headline(run(result([model()])))[1]


def test_the_spread_over_clients_and_budgets() -> None:
    rows = [handed(0.4, "2 M MACs"), handed(0.6, "2 M MACs"), handed(1.0, "500 k MACs"), without("away")]
    text = clients_story(rows, ACCURACY).replace("\u00a0", " ")
    assert text.startswith("3 clients of 4 run a model of their own: accuracy there 66.7 % on average, 40.0 % over the")
    assert "standard deviation of 24.9 points" in text
    assert text.endswith("500 k MACs 100.0 % (100.0 %) and 2 M MACs 50.0 % (40.0 %).")
    assert "By budget" not in clients_story([handed(0.4), handed(0.6)], ACCURACY)
    assert "images they trained on" in clients_story([handed(0.4, held_out=False)], ACCURACY)
    assert clients_story([without("away")], ACCURACY) == "No client could be handed a model."


def test_words() -> None:
    assert listed([]) == "" and listed(["a"]) == "a" and listed(iter(["a", "b", "c"])) == "a, b and c"
    assert number(1, "round") == "1 round" and number(0, "round") == "0 rounds"
