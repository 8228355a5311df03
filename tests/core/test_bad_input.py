"""What users, files and clients may get wrong: each ends in an error of ours that says what, where and what instead."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.samples import random_tensors, supernet_of, toy_space

from fednas_core.base import errors
from fednas_core.base.settings import read
from fednas_core.devices.budgets import parse_budgets, parse_macs
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.run import conduct, settle
from fednas_core.runs.creation import create
from fednas_core.runs.folder import find
from fednas_core.search.exact import exact_search
from fednas_core.spaces.registry import load
from fednas_core.subnets.merge import check_tensors, largest_allowed
from fednas_core.tasks.bench import device_of, split_of


def start(pairs: dict[str, Any]) -> None:
    config = settle(read(pairs))
    conduct(config, LocalFleet(config), lambda text: None)


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ({"rouns": 3}, ["'rouns'", "did you mean 'rounds'"]),
        ({"train.lrate": 3}, ["'train.lrate'", "did you mean 'train."]),
        ({"rounds": "many"}, ["'rounds' = 'many'", "a whole number"]),
        ({"rounds": 2.5}, ["'rounds' = 2.5", "a whole number"]),
        ({"rounds": True}, ["'rounds' = True", "a whole number"]),
        ({"rounds": 0}, ["'rounds' = 0", "from 1 to 1000000"]),
        ({"seed": -1}, ["'seed' = -1", "at least 0"]),
        ({"train.lr": "0.1"}, ["'train.lr' = '0.1'", "a number"]),
        ({"train.lr": -0.1}, ["'train.lr' = -0.1", "from 0.0 to 100.0"]),
        ({"train.lr": math.nan}, ["'train.lr' = nan", "a number"]),
        ({"train.clip": math.inf}, ["'train.clip' = inf", "a number"]),
        ({"train.momentum": 1.0}, ["'train.momentum' = 1.0", "from 0.0 to 0.9999"]),
        ({"sample.stratify": "yes"}, ["'sample.stratify' = 'yes'", "true or false"]),
        ({"method": "fedprox"}, ["'method' = 'fedprox'", "fedavg, superfednas, deepfednas"]),
        ({"space.norm": "layer"}, ["'space.norm' = 'layer'", "none, group, batch"]),
        ({"data.source": "mnist"}, ["'data.source' = 'mnist'", "digits, cifar10"]),
        ({"data.alpha": 0}, ["'data.alpha' = 0", "from 0.001"]),
        ({"data.validation": 0.9}, ["'data.validation' = 0.9", "from 0.01 to 0.5"]),
        ({"budgets": 5}, ["'budgets' = 5", "text in quotes"]),
        ({"deadline": 0}, ["'deadline' = 0", "from 0.1"]),
        ({"train.augment": "mixup"}, ["'train.augment' = 'mixup'", "none, crop, crop-flip"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings(pairs: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        read(pairs)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["entry ''", "an example: phone=2M"]),
        ("phone", ["entry 'phone'", "name=budget"]),
        ("phone=2M,,tablet=3M", ["entry ''"]),
        ("../phone=2M", ["entry '../phone=2M'", "letters, digits, - and _"]),
        ("ph one=2M", ["entry 'ph one=2M'"]),
        ("phone=2M,phone=3M", ["device 'phone' is named twice"]),
        ("phone=", ["budget ''", "2.5M or 30%"]),
        ("phone=2X", ["budget '2X'", "k, M, G or %"]),
        ("phone=-2M", ["budget '-2M'"]),
        ("phone=0M", ["budget '0M'", "a number above 0"]),
        ("phone=nan", ["budget 'nan'"]),
        ("phone=1e6", ["budget '1e6'"]),
    ],
)
def test_budgets(text: str, words: list[str]) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        parse_budgets(text, 10**9)
    for word in words:
        assert word in str(caught.value)


def test_budgets_that_are_good() -> None:
    found = parse_budgets(" server=max, phone = 2.5 M ,t-1=30%,k=70k", 10**9)
    assert [(b.device, b.macs) for b in found] == [
        ("k", 70_000),
        ("phone", 2_500_000),
        ("t-1", 3 * 10**8),
        ("server", 10**9),
    ]
    assert parse_macs("1.4G", 1) == 1_400_000_000


# -- a run that must not start -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"space.name": "resnet50"}, errors.ConfigError, ["'resnet50'", "no such search space", "small"]),
        ({"space.name": "no/such.toml"}, errors.ConfigError, ["/no/such.toml'", "path of a TOML file"]),
        (
            {"budgets": "watch=10"},
            errors.InfeasibleError,
            ["'budgets'", "device 'watch'", "10 MACs", "allowed are"],
        ),
        ({"data.clients": 5000}, errors.DataError, ["data.clients = 5000", "180 training examples"]),
        ({"data.examples": 10**6}, errors.DataError, ["data.examples = 1000000", "has 1438 training examples"]),
        ({"data.image-size": 64}, errors.DataError, ["data.image-size = 64", "1 to 8"]),
        ({"data.source": "npz"}, errors.DataError, ["data.source 'npz'", "data.path"]),
        ({"data.source": "npz", "data.path": "no.npz"}, errors.DataError, ["/no.npz'", "is not a file"]),
        ({"data.source": "folder", "data.path": "nowhere"}, errors.DataError, ["nowhere", "not a folder"]),
        ({"data.partition": "column"}, errors.DataError, ["'column'", "data.source 'npz'"]),
        (
            {"data.partition": "classes", "data.classes-per-client": 11},
            errors.DataError,
            ["data.classes-per-client = 11", "10 classes"],
        ),
        ({"method": "fedavg", "sample.arch": "{"}, errors.ConfigError, ["'sample.arch'", "not JSON", "an example"]),
        ({"method": "fedavg", "sample.arch": '{"d": [9, 9]}'}, errors.ArchError, ["found d", "needed are d, e and w"]),
        ({"resume": "../../etc"}, errors.RunError, ["there is no run '../../etc'"]),
        ({"resume": "latest"}, errors.RunError, ["there is no run 'latest'", "none"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_run_that_cannot_start_leaves_no_folder(
    tiny_pairs: dict[str, Any], changes: dict[str, Any], kind: type[Exception], words: list[str]
) -> None:
    with pytest.raises(kind) as caught:
        start({**tiny_pairs, **changes})
    for word in words:
        assert word in str(caught.value)
    assert not Path(tiny_pairs["output"]).exists()


def test_an_output_that_is_a_file(tiny_pairs: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(errors.RunError, match="setting 'output': runs cannot be written to .*file"):
        start({**tiny_pairs, "output": str(tmp_path / "file")})
    assert (tmp_path / "file").read_text() == "precious"


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(errors.ConfigError, match="'device' = 'cuda'.*allowed are auto and cpu"):
        device_of(read({"device": "cuda"}))


def test_an_npz_of_floats(tmp_path: Path) -> None:
    x, y = np.zeros((20, 8, 8)), np.arange(20) % 2
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    config = read({"data.source": "npz", "data.path": str(tmp_path / "mine.npz")})
    with pytest.raises(errors.DataError, match="x_train is float64.*expected uint8"):
        split_of(config)


# -- architectures and spaces --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("genes", "words"),
    [
        ("[]", ["list", "needed are d, e and w"]),
        ("{}", ["no genes"]),
        ('{"d": [0, 0], "e": [0.5, 0.5, 0.5, 0.5]}', ["found d, e", "needed are d, e and w"]),
        ('{"d": [0, 5], "e": [0.5, 0.5, 0.5, 0.5], "w": [0, 0, 0]}', ["d[1]", "5", "0 to 1"]),
        ('{"d": [0, 0], "e": [0.5, 0.5, 0.5, 0.6], "w": [0, 0, 0]}', []),
        ('{"d": [0, 1], "e": [0.5, 0.5, 0.5, 0.6], "w": [0, 0, 0]}', ["e[3]", "0.6", "0.5, 1.0"]),
        ('{"d": [0, 0], "e": [0.5], "w": [0, 0, 0]}', ["gene e", "list of 4 numbers"]),
        ('{"d": [0, 0], "e": [0.5, 0.5, 0.5, 0.5], "w": [0, 0, "wide"]}', ["w[2]", "'wide'", "0 to 1"]),
    ],
)
def test_architectures(genes: str, words: list[str]) -> None:
    if not words:  # an inactive gene is not looked at
        assert toy_space().arch(json.loads(genes))["e"][3] == 0.5
        return
    with pytest.raises(errors.ArchError) as caught:
        toy_space().arch(json.loads(genes))
    for word in [*words, "space 'toy'"]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("stages = 'wide'", ["stages = 'wide'", "a list of numbers"]),
        ("strides = [1, 4]", ["strides = (1, 4)", "each 1 or 2"]),
        ("widths = []", ["widths = ()", "one or more"]),
        ("stem = inf", ["stem holds inf", "a whole number"]),
        ("kernel = 5", ["unknown field 'kernel'", "allowed: name, stem"]),
        ("classes = ", ["is not valid TOML"]),
    ],
)
def test_spaces(tmp_path: Path, line: str, words: list[str]) -> None:
    table = {"stem": 8, "stages": [8, 8], "strides": [1, 2], "widths": [1.0], "expansions": [1.0]}
    key = line.split(" ")[0]
    path = tmp_path / "mine.toml"
    path.write_text("".join(f"{k} = {v}\n" for k, v in table.items() if k != key) + line + "\n")
    with pytest.raises(errors.ConfigError) as caught:
        load(str(path))
    for word in [*words, "mine"]:
        assert word in str(caught.value)


def test_a_search_that_cannot_be_met() -> None:
    with pytest.raises(errors.InfeasibleError, match="at most 5 MACs; the cheapest has"):
        exact_search(load("small"), [5])


# -- replies -------------------------------------------------------------------------------------------------------


def without(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["head.bias"]


def renamed(tensors: dict[str, torch.Tensor]) -> None:
    tensors["head.basis"] = tensors.pop("head.bias")


def scalar(tensors: dict[str, torch.Tensor]) -> None:
    tensors["head.bias"] = torch.tensor(0.0)


def doubles(tensors: dict[str, torch.Tensor]) -> None:
    tensors["head.bias"] = tensors["head.bias"].double()


def integers(tensors: dict[str, torch.Tensor]) -> None:
    tensors["head.bias"] = tensors["head.bias"].long()


def nothing_but_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["head.bias"] *= math.nan


def infinity(tensors: dict[str, torch.Tensor]) -> None:
    tensors["head.bias"] += math.inf


def overflow(tensors: dict[str, torch.Tensor]) -> None:
    tensors["head.bias"] += 3e38


@pytest.mark.parametrize(
    ("spoil", "found", "allowed"),
    [
        (without, "no such tensor", "shape (3,)"),
        (renamed, "a tensor that its architecture does not have", "the tensors of its order"),
        (scalar, "shape ()", "shape (3,)"),
        (doubles, "torch.float64", "torch.float32"),
        (integers, "torch.int64", "torch.float32"),
        (nothing_but_nan, "values that are not finite", "finite values"),
        (infinity, "values that are not finite", "finite values"),
        (overflow, "values up to 3e+38", "values up to "),
    ],
)
def test_replies(spoil: Callable[[dict[str, torch.Tensor]], None], found: str, allowed: str) -> None:
    space = toy_space()
    plan = space.plan(space.largest)
    tensors = random_tensors(plan, 1)
    spoil(tensors)
    with pytest.raises(errors.ReplyError) as caught:
        check_tensors("client-03", plan, tensors, largest_allowed(supernet_of(space)))
    text = str(caught.value)
    assert text.startswith("client client-03: tensor 'head.b") and f"found {found}, allowed {allowed}" in text


# -- a folder to resume --------------------------------------------------------------------------------------------


def no_checkpoint(folder: Path) -> None:
    (folder / "checkpoint" / "state.json").unlink()


def torn_state(folder: Path) -> None:
    (folder / "checkpoint" / "state.json").write_text('{"round": 2, "ten')


def torn_tensors(folder: Path) -> None:
    path = next((folder / "checkpoint").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])


def no_tensors(folder: Path) -> None:
    next((folder / "checkpoint").glob("*.safetensors")).unlink()


def other_tensors(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, str(next((folder / "checkpoint").glob("*.safetensors"))))


def pickled(folder: Path) -> None:
    torch.save({"a": 1}, next((folder / "checkpoint").glob("*.safetensors")))


def torn_settings(folder: Path) -> None:
    (folder / "config.toml").write_text("[settings]\nrounds = ")


def unknown_setting(folder: Path) -> None:
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace("[settings]", "[settings]\nspeed = 3"))


def other_method(folder: Path) -> None:
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace('method = "fedavg"', 'method = "superfednas"'))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, tiny_space_file: Path) -> Path:
    """A run with a checkpoint after round 1 of 3."""
    from contracts.fleets import Stopping
    from contracts.samples import TINY

    output = tmp_path_factory.mktemp("interrupted")
    config = read({**TINY, "method": "fedavg", "rounds": 3, "space.name": str(tiny_space_file), "output": str(output)})
    with pytest.raises(KeyboardInterrupt):
        conduct(config, Stopping(LocalFleet(config), 1), lambda text: None)
    return find(output, "latest").path


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (no_checkpoint, errors.RunError, ["has no checkpoint", "start it anew"]),
        (torn_state, errors.RunError, ["checkpoint", "is damaged", "start it anew"]),
        (torn_tensors, errors.RunError, ["checkpoint", "is damaged"]),
        (no_tensors, errors.RunError, ["is damaged", "supernet-000001.safetensors"]),
        (other_tensors, errors.RunError, ["is damaged", "is not what it was when state.json was saved"]),
        (pickled, errors.RunError, ["is damaged"]),
        (torn_settings, errors.RunError, ["settings cannot be read", "config.toml"]),
        (unknown_setting, errors.ConfigError, ["unknown setting 'speed'"]),
        (other_method, errors.RunError, ["does not fit the settings"]),
    ],
)
def test_folders_to_resume(
    interrupted: Path, tmp_path: Path, damage: Callable[[Path], None], kind: type[Exception], words: list[str]
) -> None:
    import shutil

    folder = tmp_path / "runs" / interrupted.name
    shutil.copytree(interrupted, folder)
    damage(folder)

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "owner.lock"}

    before = content()
    with pytest.raises(kind) as caught:
        start({"output": str(tmp_path / "runs"), "resume": folder.name})
    for word in words:
        assert word in str(caught.value)
    assert content() == before


def test_a_run_folder_that_is_none(tmp_path: Path) -> None:
    run = create(read({"output": str(tmp_path)}))
    (run.path / "config.toml").unlink()
    with pytest.raises(errors.RunError, match=f"there is no run '{run.id}'"):
        find(tmp_path, run.id)
