"""What a contest costs its clients: counted in the real loop, equal to the closed form to the last unit."""

from __future__ import annotations

import pytest
from contracts.arena import Instant, contest_of, crowd
from contracts.records import recorded
from contracts.samples import random_tensors

from fednas_core.base.config import RunConfig
from fednas_core.base.settings import flatten, read
from fednas_core.base.values import Arch
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.rounds import run_round
from fednas_core.methods.contest import Contest
from fednas_core.methods.registry import make
from fednas_core.methods.setup import Setup
from fednas_core.search.ledger import Design, Job, Work, dynamic_rounds, work
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.space import Elastic
from fednas_core.tasks.bench import space_of

K, TRAINERS, ITERATIONS, MOST, LEAST, EPOCHS = 10, 100, 20, 20, 2, 2
ALIVE = (10, 10, 5, 5, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
DYNAMIC = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20)
CLIENTS = crowd(TRAINERS * 5 // 4)
TOML = """
kind = "chain"
image_size = 8
in_channels = 1
classes = 10
units = [{ kind = "conv", filters = 88, kernel = 1 }]
"""

Variant = tuple[bool, bool, bool]  # partial clients, early dropping, dynamic rounds
GOLDEN: dict[str, tuple[Variant, int]] = {
    "baseline": ((False, False, False), 400_000),
    "partial_clients": ((True, False, False), 40_000),
    "early_drop": ((False, True, False), 96_000),
    "dynamic_rounds": ((False, False, True), 220_000),
    "partial+drop": ((True, True, False), 9_600),
    "all_three": ((True, True, True), 7_610),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    path = tmp_path_factory.mktemp("space") / "wide.toml"
    path.write_text(TOML)
    return read(
        {"space.name": str(path), "data.examples": 100, "data.clients": 10, "method": "fednas", "train.epochs": EPOCHS}
    )


def rounds_of(variant: Variant, iterations: int) -> tuple[int, ...]:
    return dynamic_rounds(LEAST, MOST, ITERATIONS)[:iterations] if variant[2] else (MOST,) * iterations


def design(variant: Variant, iterations: int) -> Design:
    partial, dropping, _ = variant
    return Design(K, TRAINERS, rounds_of(variant, iterations), 2, 0.5 if dropping else 0.0, partial)


def archs_of(space: Elastic) -> list[Arch]:
    return [space.arch({"w": [width], "k": []}) for width in range(K)]


def in_closed_form(space: Elastic, variant: Variant, iterations: int) -> Work:
    """Equal accuracies: of the candidates that were proposed, the first ones stay."""
    size = TRAINERS // K if variant[0] else TRAINERS
    costs = [space.cost(arch) for arch in archs_of(space)]
    jobs = [
        [[Job(size, 50 * size, cost.macs, cost.bytes) for cost in costs[:alive]] for alive in expected[:many]]
        for many in (DYNAMIC[:iterations] if variant[2] else (MOST,) * iterations)
        for expected in [ALIVE if variant[1] else (K,) * MOST]
    ]
    return work(jobs, EPOCHS)


def held(config: RunConfig, variant: Variant, iterations: int) -> tuple[Work, list[int]]:
    """Hold a contest of ten candidates in the real loop, with clients that answer at once.

    Return the work that its events tell of the competition, and how many candidates trained in each round of each
    iteration.
    """
    space, (partial, dropping, _), many = space_of(config), variant, rounds_of(variant, iterations)
    method = contest_of(
        space, random_tensors(space.plan(space.largest), 1), [archs_of(space)] * iterations,
        contest=lambda iteration: many[iteration], everyone=not partial, drop=0.5 if dropping else 0.0, every=2,
    )  # fmt: skip
    fleet = Instant(CLIENTS, lambda order: 3 * EPOCHS * 50 * space.cost(order.arch).macs)
    found, alive, labels, index, before = Work(0, 0, 0), list[int](), set[str](), 0, 0
    while not method.done(index):
        event = recorded(run_round(config, method, fleet, index))
        story = event["search"]
        index += 1
        if story["stage"] != "compete":
            continue
        moved = event["bytes_up"] + event["bytes_down"]
        found = Work(
            found.client_rounds + len(event["clients"]), found.macs + event["client_macs"], found.bytes + moved
        )
        labels |= {row["network"] for row in event["clients"]}
        if story["round"] != before:  # with all clients on each candidate it takes several of the loop's
            alive.append(len(labels))
            labels, before = set(), story["round"] % story["of"]
    return found, alive


CASES = [
    ("all_three", 20),
    ("partial+drop", 20),
    ("early_drop", 1),
    ("partial_clients", 2),
    ("dynamic_rounds", 2),
    ("baseline", 1),
    *(pytest.param(name, ITERATIONS, marks=pytest.mark.slow) for name in ("partial_clients", "early_drop")),
    *(pytest.param(name, ITERATIONS, marks=pytest.mark.slow) for name in ("dynamic_rounds", "baseline")),
]


@pytest.mark.parametrize(("name", "iterations"), CASES)
def test_clients_do_what_the_closed_form_says(config: RunConfig, name: str, iterations: int) -> None:
    """Client-rounds, MACs and bytes; runs of all iterations have the golden number."""
    variant, golden = GOLDEN[name]
    assert design(variant, ITERATIONS).client_rounds == golden
    found, alive = held(config, variant, iterations)
    assert found == in_closed_form(space_of(config), variant, iterations)
    assert found.client_rounds == design(variant, iterations).client_rounds
    if iterations == ITERATIONS:
        assert found.client_rounds == golden
    many = DYNAMIC[:iterations] if variant[2] else (MOST,) * iterations
    assert alive == [count for rounds in many for count in (ALIVE if variant[1] else (K,) * MOST)[:rounds]]


def test_clients_that_really_train_do_that_work(config: RunConfig) -> None:
    """FedNAS on digits: what each client reports of its training is what the closed form makes of its network."""
    mine = {"rounds": 1, "data.clients": 10, "contest.iterations": 2, "contest.finish": 1, "contest.candidates": 3}
    mine |= {"fednas.rounds-min": 1, "fednas.rounds-max": 3, "fednas.drop-every": 1, "workers": 1, "device": "cpu"}
    config = read({**flatten(config), **mine, "data.partition": "iid", "data.alpha": 100.0, "fednas.step": 0.2})
    space, index = space_of(config), 0
    method = make(Setup(config, space, (), initial_weights(space, 1)))
    examples = {client.name: client.examples for client in LocalFleet(config).clients()}
    assert isinstance(method, Contest)
    while not method.done(index):
        costs = {label: space.cost(entrant.arch) for label, entrant in method._entrants().items()}
        event = recorded(run_round(config, method, LocalFleet(config), index))
        index += 1
        jobs = [
            Job(1, examples[r["client"]], costs[r["network"]].macs, costs[r["network"]].bytes) for r in event["clients"]
        ]
        assert work([[jobs]], EPOCHS) == Work(
            8 if index != 4 else len(jobs),
            sum(row["client_macs"] for row in event["clients"]),
            sum(row["bytes_up"] + row["bytes_down"] for row in event["clients"]),
        )
    assert index > 4
