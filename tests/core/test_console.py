"""What the terminal says of networks that clients test and of layers that they keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from contracts.records import event as made
from contracts.records import handed, model, result, spread, without

from fednas_core.base.config import PersonalConfig, RunConfig
from fednas_core.base.metrics import ACCURACY
from fednas_core.base.settings import read
from fednas_core.engine.console import greeting, line
from fednas_core.runs.folder import RunFolder
from fednas_core.show.ending import clients_table, ending, kept

EVENT: dict[str, Any] = {"round": 3, "loss": 1.25, "accuracy": 0.5, "bytes_up": 2_000_000, "seconds": 1.5}


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read(tiny_pairs)


def test_a_round_tells_the_worst_tenth(config: RunConfig) -> None:
    tested = {"accuracy": 0.9, "clients": spread([0.8, 1.0])}

    def told(row: dict[str, Any]) -> str:
        return line(config, made({**EVENT, "evaluation": [row]}))

    assert told(tested).endswith("1.5 s  network 90.0% (worst tenth 80.0%)")
    assert told({**tested, "accuracy": 0.95}).endswith("95.0% (clients 90.0%, worst tenth 80.0%)")
    assert told({"name": "phone", "accuracy": 0.9}).endswith("1.5 s  phone 90.0%")
    assert line(config, made(EVENT)).endswith("1.5 s")


def test_the_greeting_says_where_the_start_of_a_search_comes_from(config: RunConfig) -> None:
    run, competing = RunFolder(Path("runs/x")), replace(config, method="fednas")
    assert f"training  {config.rounds} rounds," in greeting(config, run, 0)
    assert f"training  {config.rounds} rounds of the start," in greeting(competing, run, 0)
    started = replace(competing, contest=replace(config.contest, start="an-id"))
    assert "training  from run an-id," in greeting(started, run, 0)


def test_the_greeting_says_what_stays_on_the_clients(config: RunConfig) -> None:
    run = RunFolder(Path("r1"))
    assert "personal" not in greeting(config, run, 0)
    config = replace(config, data=replace(config.data, holdout=0.1))
    text = greeting(replace(config, personal=PersonalConfig(layers="head")), run, 0)
    mine = 32 * 10 + 10
    assert f"\npersonal  head stays on the clients ({mine} of " in text
    assert "each client keeps 10% of its own to test" in text
    assert "keeps" not in greeting(replace(config, data=replace(config.data, holdout=0.0)), run, 0)
    text = greeting(replace(config, personal=PersonalConfig(layers="head", blocks=1, arch=True)), run, 0)
    assert " stay on the clients (" in text and "; each client keeps to an architecture of its own" in text


SEARCH: dict[str, Any] = {
    "stage": "compete", "iteration": 2, "round": 1, "of": 3, "alive": ["2.1", "2.2"], "over": False,
}  # fmt: skip


def test_a_round_of_a_search_has_no_total(config: RunConfig) -> None:
    assert line(config, made(EVENT)).startswith(f"round   3/{config.rounds}  training loss 1.250 accuracy  50.0%")
    nobody = line(config, made({**EVENT, "loss": None, "accuracy": None}, "netadapt"))
    assert nobody.startswith(f"round   3/{config.rounds}  training loss – accuracy      –")
    event = {**EVENT, "search": SEARCH, "clients": [{"network": "2.1"}, {"network": "2.2"}]}
    told = line(config, made(event, "netadapt"))
    assert told == (
        "round   3  training loss 1.250 accuracy  50.0%  up 2.0 MB  1.5 s  iteration 2, round 1/3: 2 candidates"
    )
    leader = {"name": "leader", "macs": 1, "accuracy": 0.9}
    late = {**SEARCH, "iteration": 10, "round": 6, "of": 6, "winner": "10.13", "resource": "params", "takes": 123456.0}
    told = line(config, made({**event, "round": 103, "evaluation": [leader], "search": late}, "netadapt"))
    assert told.endswith("leader 90.0%  iteration 10: winner 10.13 at 123 k params") and len(told) <= 122


def test_the_greeting_of_a_search(tiny_pairs: dict[str, Any]) -> None:
    run, pairs = RunFolder(Path("r1")), {**tiny_pairs, "method": "fednas", "space.name": "cnn8", "data.clients": 4}
    text = greeting(read({**pairs, "contest.testers": 0.5, "contest.finish": 3}), run, 0)
    assert (
        "\nsearch    netadapt: up to 12 iterations of 2 to 4 rounds, 50% dropped every round; 2 of 4 clients test; "
        "3 rounds for what is delivered\n" in text
    )
    assert "rounds of the start, " in text
    plain = {"contest.iterations": 2, "contest.clients": "all", "fednas.drop": 0.0, "fednas.rounds-max": 1}
    text = greeting(read({**pairs, **plain}), run, 0)
    assert "netadapt: up to 2 iterations of 2 rounds; every client trains each candidate; 1 of 4 clients test;" in text
    text = greeting(read({**pairs, "method": "ddc", "contest.candidates": 3}), run, 0)
    assert "search    policy, reward 'ddc': 25 iterations of 3 students and 2 rounds; 1 of 4 clients test;" in text
    text = greeting(read(tiny_pairs), run, 0)
    assert "search " not in text and "of the start" not in text


def test_the_clients_table_ends_with_their_spread() -> None:
    rows = [handed(0.5 + 0.05 * i) for i in range(10)] + [without("away")]
    assert clients_table(rows, ACCURACY, most=2).splitlines()[-1] == (
        "10 of 11 clients run a model  mean  72.5%  worst tenth  50.0%  spread 14.4 points"
    )
    rows = [handed(0.5, "2 M MACs"), handed(0.7, "2 M MACs"), handed(1.0, "500 k MACs")]
    assert clients_table(rows, ACCURACY).splitlines()[-3:] == [
        "3 of 3 clients run a model  mean  73.3%  worst tenth  50.0%  spread 20.5 points",
        "  500 k MACs: 1             mean 100.0%  worst tenth 100.0%  spread  0.0 points",
        "  2 M MACs: 2               mean  60.0%  worst tenth  50.0%  spread 10.0 points",
    ]
    assert clients_table([without("away")], ACCURACY).endswith("no client runs a model")


def test_the_end_of_a_run_says_where_its_models_are() -> None:
    seconds = {"total": 112.5, "start": 12.5, "training": 100.0, "export": 0.0}
    text = ending(result(clients=[handed(0.5)], personal=["head"], seconds=seconds), ACCURACY)
    assert "The server has no complete network: head never left the clients" in text and "50.0%" in text
    assert "network: head, stages.2 never left" in kept(["head", "stages.2"])
    text = ending(result([model()], seconds=seconds), ACCURACY)
    assert "phone" in text and "never left" not in text and "client" not in text
    assert text.endswith("\ntime  1 min 52 s: start 12.5 s, training 1 min 40 s")
    text = ending(result([model(test_accuracy=None)], seconds=seconds), ACCURACY)
    assert "90.0%     –  " in text, "an accuracy that nobody knows is no 0.0%"


def test_an_accuracy_says_on_which_images_it_was_found_and_what_nobody_tested_is_unknown() -> None:
    untested = handed(None, tested=0)
    text = clients_table([handed(1.0, held_out=False), untested], ACCURACY)
    assert "100.0%  on 9 images that it trained on" in text and "–  no image to spare for a test" in text
    assert "2 of 2 clients run a model, 1 tested it  mean 100.0%" in text and text.endswith("(on training images)")
    alone = clients_table([untested], ACCURACY)
    assert alone.endswith("1 of 1 clients run a model; none had an image to test it on")
