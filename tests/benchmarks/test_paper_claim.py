"""The benchmark of the claim: what is judged is what was trained, and arms differ in nothing but what they train."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fednas_core.base.seeding import stream
from fednas_core.search.fitness import Fitness
from fednas_core.search.fittest import fitness_of
from fednas_core.tasks.registry import clients_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ARMS = ("exact path", "stopped search", "uniform", "range-matched", "MAC-matched", "exact, depth-stratified")
CONTROLS = ("uniform", "range-matched", "MAC-matched")
ROUNDS = 40
"""Rounds of all eight clients, in which every row of a path is drawn."""


@pytest.fixture(scope="module")
def claim() -> Any:
    sys.path.append(str(BENCHMARKS))
    return importlib.import_module("paper_claim")


@pytest.fixture(scope="module")
def arms(claim: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every arm of one seed, on noise of the shape of CIFAR-10 at 16×16."""
    path, rng = tmp_path_factory.mktemp("claim") / "noise.npz", np.random.default_rng(0)
    x, y = rng.integers(0, 256, (8000, 16, 16, 3), dtype=np.uint8), np.arange(8000) % 10
    np.savez(path, x_train=x, y_train=y, x_test=x[:100], y_test=y[:100])
    return {arm: claim.arm_of(arm, 3, str(path)) for arm in ARMS}


@pytest.mark.parametrize("name", ["exact path", "stopped search", "exact, depth-stratified"])
def test_every_network_that_is_judged_as_an_arms_own_is_on_its_trained_path(arms: dict[str, Any], name: str) -> None:
    arm = arms[name]
    method, clients = arm.method(), clients_of(arm.config)
    trained = set()
    for index in range(ROUNDS):
        ask = method.ask(index, 0, clients, stream(arm.config.seed, index, "plan"))
        trained |= {order.arch for order in ask.orders}
    assert set(arm.candidates()["own"]) == trained == {row.arch for row in arm.path}


@pytest.mark.parametrize("name", ARMS)
def test_the_fitness_of_a_run_is_that_of_its_settings(arms: dict[str, Any], name: str) -> None:
    arm = arms[name]
    constants = Fitness(lam=arm.config.sample.fitness_lambda)
    for path in (arm.path, arm.exact):
        assert [row.fitness for row in path] == fitness_of(arm.space, [row.arch for row in path], constants)
    assert all(best.fitness >= row.fitness for best, row in zip(arm.exact, arm.path, strict=True))


@pytest.mark.parametrize("name", ARMS)
def test_arms_of_a_seed_differ_only_in_what_they_train_and_how_fast(arms: dict[str, Any], name: str) -> None:
    first, arm = arms["exact path"], arms[name]
    same = replace(arm.config, sample=first.config.sample, train=replace(arm.config.train, lr=first.config.train.lr))
    assert same == first.config
    assert (arm.exact, arm.limits) == (first.exact, first.limits)
    assert all(torch.equal(tensor, first.supernet[name]) for name, tensor in arm.supernet.items())


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_has_as_many_candidates_within_each_budget(claim: Any, arms: dict[str, Any], name: str) -> None:
    arm = arms[name]
    candidates = arm.candidates()
    assert candidates["random"] == arms["uniform"].candidates()["own"]
    assert candidates["exact"] == arms["exact path"].candidates()["own"]
    for archs in candidates.values():
        assert len(archs) == claim.ROWS == len(arm.limits)
        assert all(arm.space.cost(arch).macs <= limit for arch, limit in zip(archs, arm.limits, strict=True))


def test_the_stopped_search_is_not_the_exact_one(claim: Any, arms: dict[str, Any]) -> None:
    arm = arms["stopped search"]
    shared = {row.arch for row in arm.path} & {row.arch for row in arm.exact}
    assert shared == {arm.space.largest} and arm.space.size > 10**6


def test_the_tables_pair_the_seeds_that_every_arm_has(claim: Any) -> None:
    lead = {"exact path": 2.0, "stopped search": 1.0, "uniform": 0.0, "range-matched": 0.0, "MAC-matched": 0.5}
    rng, found = np.random.default_rng(0), {}
    for seed in range(5):
        for arm, points in lead.items():
            if seed == 4 and arm == "uniform":
                continue
            judged = {"test": [40 + points + 0.1 * seed + rng.normal(0, 1e-3)] * 4, "macs": [1e6] * 4}
            band = {of: rng.random(20).tolist() for of in ("fitness", "macs", "params", "accuracy")}
            row = {"lr": 0.05, "upload_params_m": 1.0, "client_macs_t": 1.0, "fitness_gap": 9.0, "shared_rows": 0}
            judged_all = {kind: judged for kind in claim.KINDS} | {"bands": [band] * len(claim.BANDS)}
            found[arm, seed, 12, 0.05] = row | judged_all
    text = claim.summary(found, list(lead))
    assert text.startswith("4 seeds, 12 rounds")
    assert "| exact path | 0.05 | 42.15 ± 0.13 |" in text
    assert "| exact path − uniform | 2.00 ± 0.00 | 4 of 4 |" in text
    assert "| exact path − stopped search | 1.00 ± 0.00 | 4 of 4 |" in text
