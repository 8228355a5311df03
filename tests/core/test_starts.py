"""What a run starts from: fresh weights, or the network and the policy of a run before."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.arena import Round, crowd

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError, RunError
from fednas_core.base.seeding import derive
from fednas_core.base.settings import read
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.starts import starting, trained
from fednas_core.methods.contest import Contest
from fednas_core.methods.fedavg import SupernetAveraging
from fednas_core.methods.registry import make
from fednas_core.methods.setup import Setup
from fednas_core.runs.folder import RunFolder, create
from fednas_core.spaces.networks import initial_weights
from fednas_core.tasks.bench import digest_of, space_of

TOML = """
kind = "chain"
image_size = 8
in_channels = 1
classes = 10
units = [
    { kind = "conv", filters = 16 },
    { kind = "conv", filters = 24 },
    { kind = "conv", filters = 24 },
]
"""


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "chain.toml").write_text(TOML)
    return {
        "method": "fednas", "output": str(tmp_path / "runs"), "space.name": str(tmp_path / "chain.toml"), "rounds": 1,
        "data.examples": 100, "contest.iterations": 2, "contest.candidates": 2, "contest.finish": 0, "seed": 3,
        "sample.budgets": 3, "sample.fitness-lambda": 0.0, "ddc.rounds": 1, "ddc.lr": 0.1,
    }  # fmt: skip


def method_of(config: RunConfig) -> Any:
    space = space_of(config)
    weights = initial_weights(space, derive(config.seed, "weights"))
    return make(Setup(config, space, (), weights, latency_ms=lambda arch: 1.0 + space.cost(arch).macs))


def left(pairs: dict[str, Any], rounds: int = 3, **more: Any) -> tuple[RunFolder, Any]:
    """A run that was stopped after some rounds, and its method as it was then."""
    config = read({**pairs, **{key.replace("__", "."): value for key, value in more.items()}})
    method, run = method_of(config), create(config)
    for number in range(rounds):
        if isinstance(method, Contest):
            Round(method, number, crowd(10), lambda asked: 0.5)
        else:
            for tensor in method.weights().values():
                tensor.add_(0.01)
    run.save_checkpoint(rounds, method.state())
    return run, method


def same(one: Any, two: Any) -> bool:
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_a_fresh_start_is_that_of_the_seed(pairs: dict[str, Any]) -> None:
    config = read(pairs)
    space = space_of(config)
    start = starting(config, space)
    weights, policy = start.weights, start.policy
    assert policy is None and same(weights, initial_weights(space, derive(3, "weights")))
    assert not same(weights, starting(replace(config, seed=4), space).weights)


@pytest.mark.parametrize("method", ["fednas", "ddc", "fedavg", "superfednas"])
def test_the_largest_network_of_another_run_is_the_start(pairs: dict[str, Any], method: str) -> None:
    run, before = left(pairs, method=method)
    config = read({**pairs, "contest.start": run.id})
    space = space_of(config)
    start = starting(config, space)
    weights, policy = start.weights, start.policy
    assert policy is None and same(weights, before.network(space.largest))
    assert not same(weights, starting(read(pairs), space).weights)
    assert list(weights) == list(space.plan(space.largest))
    weights["head.bias"].add_(1)
    assert not torch.equal(starting(config, space).weights["head.bias"], weights["head.bias"])


@pytest.mark.parametrize("only", ["3,8", "8,3", "7,0,2"])
def test_of_the_classifier_the_rows_of_the_classes_that_count_are_kept(pairs: dict[str, Any], only: str) -> None:
    run, before = left(pairs)
    config = read({**pairs, "contest.start": run.id, "data.only": only})
    space, rows = space_of(config), [int(name) for name in only.split(",")]
    weights = starting(config, space).weights
    theirs = before.network(before.space.largest)
    for name, tensor in weights.items():
        assert torch.equal(tensor, theirs[name][rows] if name.startswith("head.") else theirs[name])
    assert weights["head.weight"].shape[0] == len(rows) == space.classes


def test_a_subset_starts_from_a_larger_subset_but_not_from_a_smaller_one(pairs: dict[str, Any]) -> None:
    run, before = left(pairs, data__only="1,3,8,9")
    config = read({**pairs, "contest.start": run.id, "data.only": "9,3"})
    weights = starting(config, space_of(config)).weights
    assert torch.equal(weights["head.bias"], before.weights()["head.bias"][[3, 1]])
    for only in ("", "1,2,3,8,9", "0,2,4,5"):
        other = read({**pairs, "contest.start": run.id, "data.only": only})
        with pytest.raises(ConfigError, match=f"'data.only' = '{only}': run '{run.id}' .* 4 classes: .* of 1, 3, 8, 9"):
            starting(other, space_of(other))


def test_another_space_or_norm_is_refused(pairs: dict[str, Any], tmp_path: Path) -> None:
    run, _ = left(pairs)
    (tmp_path / "wide.toml").write_text(TOML.replace("16", "32"))
    for more in ({"space.name": str(tmp_path / "wide.toml")}, {"space.norm": "none"}, {"space.name": "small"}):
        config = read({**pairs, **more, "contest.start": run.id})
        with pytest.raises(ConfigError, match="is not that of this run's space '.*': choose the same space and images"):
            starting(config, space_of(config))


OTHER: dict[str, Any] = {
    "seed": 4,
    "data.source": "npz",
    "data.image-size": 4,
    "data.examples": 110,
    "data.partition": "iid",
    "data.alpha": 0.5,
    "data.clients": 9,
    "data.validation": 0.2,
    "data.holdout": 0.3,
    "contest.testers": 0.5,
}


@pytest.mark.parametrize("key", OTHER)
def test_a_start_whose_clients_held_other_images_is_refused_by_name(pairs: dict[str, Any], key: str) -> None:
    run, _ = left(pairs)
    config = read({**pairs, "contest.start": run.id, key: OTHER[key]})
    with pytest.raises(ConfigError, match=f"setting '{key}' = .* but .* in run '{run.id}', .* allowed is the same, or"):
        starting(config, space_of(read(pairs)))


@pytest.mark.parametrize("spread", [{"data.partition": "classes", "data.classes-per-client": 3}])
def test_what_a_partition_does_not_go_by_may_differ(pairs: dict[str, Any], spread: dict[str, Any]) -> None:
    pairs = {**pairs, **spread}
    run, _ = left(pairs)
    same_split = read({**pairs, "contest.start": run.id, "data.alpha": 0.1, "data.disclose": True})
    assert starting(same_split, space_of(same_split)).weights
    other = read({**pairs, "contest.start": run.id, "data.classes-per-client": 4})
    with pytest.raises(ConfigError, match="setting 'data.classes-per-client' = 4, but 3 in run"):
        starting(other, space_of(other))


def test_a_start_of_other_images_is_refused_whatever_their_path(pairs: dict[str, Any], tmp_path: Path) -> None:
    rng, y = np.random.default_rng(1), np.arange(200) % 10
    x = rng.integers(0, 256, (200, 8, 8), dtype=np.uint8)
    paths = [tmp_path / f"{name}.npz" for name in ("first", "copied", "other")]
    for path, images in zip(paths, (x, x, 255 - x), strict=True):
        np.savez(path, x_train=images, y_train=y, x_test=x, y_test=y)
    pairs = {**pairs, "data.source": "npz"}
    run, _ = left({**pairs, "data.path": str(paths[0])})

    def begin(path: Path) -> None:
        config = read({**pairs, "contest.start": run.id, "data.path": str(path)})
        starting(config, space_of(config))

    begin(paths[0])
    with pytest.raises(ConfigError, match="'data.path' = .*copied.npz' holds other images than run"):
        begin(paths[1])  # for all that is known
    run.note_images(digest_of(run.config()))
    begin(paths[1])
    with pytest.raises(ConfigError, match="'data.path' = .*other.npz' holds other images than run"):
        begin(paths[2])


def test_who_tested_where_the_start_was_trained_tests_again(pairs: dict[str, Any]) -> None:
    """Devices with names of their own are dealt sides as they appear, which may be another time another way."""
    config = read(pairs)
    method, run = method_of(config), create(config)
    wards = [ClientInfo(f"ward-{letter}", 50) for letter in "abcdefgh"]
    Round(method, 0, wards)
    run.save_checkpoint(1, method.state())
    tested = {name for name, tests in method._sides.settled.items() if tests}
    config = read({**pairs, "contest.start": run.id})
    start = starting(config, space_of(config))
    again = make(Setup(config, space_of(config), (), start.weights, sides=start.sides))
    found = Round(again, 0, [*wards[4:], ClientInfo("ward-z", 50), ClientInfo("ward-y", 50)])
    assert tested == {"ward-e"} and found.testers - {"ward-y", "ward-z"} == tested & {ward.name for ward in wards[4:]}
    assert not start.warning


def test_a_start_that_testing_clients_have_trained_is_told(pairs: dict[str, Any]) -> None:
    run, _ = left(pairs, method="superfednas")
    config = read({**pairs, "contest.start": run.id})
    assert "all clients of a run of 'superfednas' trained this network" in starting(config, space_of(config)).warning
    between, _ = left(pairs, contest__start=run.id)
    config = read({**pairs, "contest.start": between.id})
    assert "a run of 'superfednas'" in starting(config, space_of(config)).warning
    fresh, _ = left(pairs)
    config = read({**pairs, "contest.start": fresh.id})
    assert starting(config, space_of(config)).warning == ""


def test_a_run_that_is_not_there_or_has_nothing_yet(pairs: dict[str, Any]) -> None:
    run, _ = left(pairs)
    for key in ("contest.start", "ddc.policy"):
        config = read({**pairs, "method": "ddc", key: "20200101-000000-ddc"})
        with pytest.raises(
            ConfigError, match=f"there is no run '20200101-000000-ddc' in .*; the latest there: .*{run.id}"
        ):
            starting(config, space_of(config))
        shutil.rmtree(run.path / "checkpoint", ignore_errors=True)
        config = read({**pairs, "method": "ddc", key: run.id})
        with pytest.raises(RunError, match="has no checkpoint"):
            starting(config, space_of(config))


def test_the_policy_of_another_run_is_transferred(pairs: dict[str, Any]) -> None:
    pairs = {**pairs, "method": "ddc"}
    run, before = left(pairs, ddc__lr=0.3, seed=9)
    config = read({**pairs, "ddc.policy": run.id})
    space = space_of(config)
    start = starting(config, space)
    weights, policy = start.weights, start.policy
    learnt = before._host._learner.policy.state_dict()
    assert policy is not None and same(weights, starting(read(pairs), space).weights)
    method = make(Setup(config, space, (), weights, policy=policy))
    found = method._host._learner.policy.state_dict()  # type: ignore[union-attr]
    assert same(found, learnt) and not same(found, method_of(read(pairs))._host._learner.policy.state_dict())


@pytest.mark.parametrize("method", ["fednas", "fedavg"])
def test_a_run_that_learnt_no_policy_is_refused(pairs: dict[str, Any], method: str) -> None:
    run, _ = left(pairs, method=method)
    config = read({**pairs, "method": "ddc", "ddc.policy": run.id})
    with pytest.raises(
        ConfigError, match=f"'ddc.policy': run '{run.id}' of method '{method}' learnt none; name one of"
    ):
        starting(config, space_of(config))


def test_a_run_that_is_resumed_needs_the_runs_before_no_more(pairs: dict[str, Any]) -> None:
    donor, _ = left({**pairs, "method": "ddc"})
    more = {**pairs, "method": "ddc", "contest.start": donor.id, "ddc.policy": donor.id}
    run, before = left(more)
    shutil.rmtree(donor.path)
    config = replace(run.config(), resume=run.id)
    start = starting(config, space_of(config))
    weights, policy = start.weights, start.policy
    method = make(Setup(config, space_of(config), (), weights, policy=policy))
    method.restore(run.load_checkpoint()[1])
    assert method.state().data == before.state().data and same(method.state().tensors, before.state().tensors)
    with pytest.raises(ConfigError, match=f"there is no run '{donor.id}'"):
        starting(run.config(), space_of(config))


@pytest.mark.parametrize("method", ["fednas", "ddc", "fedavg", "superfednas"])
def test_what_a_run_trained_comes_back_as_it_was(pairs: dict[str, Any], method: str) -> None:
    run, before = left(pairs, method=method)
    done, again = trained(run)
    assert done == 3 and isinstance(again, Contest if method in ("fednas", "ddc") else SupernetAveraging)
    assert again.catalogue == before.catalogue and same(again.state().tensors, before.state().tensors)
