"""What there is: methods, spaces, presets and settings; the start of the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError
from fednas_core.base.settings import describe, read
from fednas_core.cli import app
from fednas_core.cli.settings import PRESETS, flat, gather, presets
from fednas_core.methods.catalogue import METHODS
from fednas_core.spaces.registry import load, names


def fednas(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_methods_are_those_of_the_registry() -> None:
    rows = json.loads(fednas("methods", "--json").stdout)
    assert [row["name"] for row in rows] == list(METHODS) and all(row["source"] for row in rows)
    assert "deepfednas" in fednas("methods").stdout


def test_spaces_state_their_bounds_and_size() -> None:
    rows = {row["name"]: row for row in json.loads(fednas("spaces", "--json").stdout)}
    assert sorted(rows) == names()
    assert rows["deepfednas-cifar"]["smallest"]["macs"] == 7_545_888
    assert rows["deepfednas-cifar"]["largest"]["macs"] == 3_403_370_496
    assert rows["deepfednas-cifar"]["size"] == 155**4 * 10**5
    assert rows["superfednas-cifar"]["size"] == 577_200_625
    assert "3,403.37 M" in fednas("spaces").stdout


def test_settings_are_all_there() -> None:
    rows = json.loads(fednas("settings", "--json").stdout)
    assert [(row["key"], row["default"]) for row in rows] == [(row.key, row.default) for row in describe()]
    assert all(row["help"] for row in rows) and "train.weight-decay" in fednas("settings").stdout


def test_settings_say_what_they_allow() -> None:
    rows = {row["key"]: row for row in json.loads(fednas("settings", "--json").stdout)}
    told = {key: [rows[key][part] for part in ("type", "choices", "low", "high")] for key in rows}
    assert told["train.schedule"] == ["text", ["constant", "cosine"], None, None]
    assert told["rounds"] == ["int", [], 1, 1_000_000] and told["train.clip"] == ["float", [], 0.0, None]
    assert told["install"] == ["bool", [], None, None]
    shown = fednas("settings").stdout
    assert "constant | cosine" in shown and "int 1 … 1e+06" in shown and "float ≥ 0" in shown


def test_settings_of_a_section_of_a_name_and_of_a_meaning() -> None:
    def keys(text: str) -> list[str]:
        return [row["key"] for row in json.loads(fednas("settings", text, "--json").stdout)]

    assert keys("wire") == ["wire.down", "wire.up", "wire.keep"]
    assert keys("DEADLINE") == ["deadline"]
    assert keys("MaxNet") == ["sample.beta-start", "sample.beta-end", "sample.beta-decay"]
    refused = fednas("settings", "no such thing")
    assert refused.exit_code == 2 and "fednas settings lists them all" in refused.stderr


def test_presets_are_listed_with_their_first_comment() -> None:
    rows = json.loads(fednas("presets", "--json").stdout)
    assert {"deepfednas-cifar10", "deepfednas-cifar100", "superfednas-cifar10", "fedavg-cifar10"} <= {
        row["name"] for row in rows
    }
    assert all(row["about"] and not row["about"].startswith("#") for row in rows)
    assert presets() == [(row["name"], row["about"]) for row in rows]
    marked = {row["name"]: {one["key"]: one for one in row["differs"]} for row in rows}
    assert marked["fedper-cifar10"]["data.image-size"]["published"] == "224"
    assert marked["superfednas-cifar10"]["search.population"]["published"] == ""
    shown = fednas("presets").stdout
    assert "deepfednas-cifar10" in shown and "images are never enlarged" in shown


@pytest.mark.parametrize("name", [name for name, _ in presets()])
def test_a_preset_is_a_run_config(name: str) -> None:
    pairs = flat(tomllib.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8")))
    config = read(pairs)
    assert gather(name, None) == pairs
    assert all(isinstance(value, (str, int, float, bool)) for value in pairs.values())
    space = load(config.space.name).with_norm(config.space.norm)
    found = (config.cohort, config.data.clients, config.space.norm, space.cost(space.largest).params)
    fedsup = (10, 100, "parametric", 2_989_322)
    others = {
        "fedsup-cifar10": fedsup,
        "efedsup-cifar10": fedsup,
        "fedper-cifar10": (0, 10, "batch", 3_217_226),
        "fednas-cifar10": (0, 125, "group", 3_217_226),
        "ddc-cifar10": (0, 25, "batch", 9_228_362),
    }
    assert found == others.get(name, (8, 20, "none", 71_689_930))


# -- settings on the command line --------------------------------------------------------------------------------


def test_a_file_may_be_flat_or_nested_and_pairs_win(tmp_path: Path) -> None:
    nested, plain = tmp_path / "nested.toml", tmp_path / "plain.toml"
    nested.write_text("rounds = 3\n[train]\nlr = 0.5\nweight-decay = 0.0\n")
    plain.write_text('rounds = 3\n"train.lr" = 0.5\n"train.weight-decay" = 0.0\n')
    assert gather(str(nested), None) == gather(str(plain), None)
    assert gather(str(nested), ["rounds=7"])["rounds"] == 7
    again = tmp_path / "config.toml"
    again.write_text('[settings]\n"train.lr" = 0.5\n[versions]\ntorch = "2"\n')
    assert gather(str(again), None) == {"train.lr": 0.5}


@pytest.mark.parametrize(
    ("pair", "wanted"),
    [
        ("rounds=3", 3),
        ("train.lr=0.5", 0.5),
        ("data.download=false", False),
        ("method=fedavg", "fedavg"),
        ('method="fedavg"', "fedavg"),
        ("budgets=phone=2M,tablet=30%", "phone=2M,tablet=30%"),
        ("resume=20260101", "20260101"),
        ("output=", ""),
        ("data.path=/a b/c", "/a b/c"),
    ],
)
def test_values_are_toml_or_else_text(pair: str, wanted: object) -> None:
    key = pair.partition("=")[0]
    value = gather(None, [pair])[key]
    assert value == wanted and type(value) is type(wanted)
    read({key: value})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--set", "rounds"), "KEY=VALUE"),
        (("--set", "rounds=many"), "whole number"),
        (("--set", "rounds=0"), "from 1 to"),
        (("--set", "runds=1"), "did you mean 'rounds'"),
        (("--config", "nothing"), "deepfednas-cifar10"),
        (("--config", "nothing.toml"), "no such file"),
    ],
)
def test_wrong_settings_are_one_message(arguments: tuple[str, ...], told: str) -> None:
    result = fednas("run", *arguments, "--json")
    assert result.exit_code == 2 and told in result.stderr and "Traceback" not in result.output
    assert told in json.loads(result.stdout)["error"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("rounds = = 1")
    with pytest.raises(ConfigError, match="bad.toml: is not valid TOML"):
        gather(str(file), None)


def test_defaults_need_no_settings() -> None:
    assert read(gather(None, None)) == RunConfig()


# -- start ---------------------------------------------------------------------------------------------------------


def test_help_starts_without_torch_and_lists_every_command() -> None:
    program = "import sys; from fednas_core.cli import main; sys.argv = ['fednas', '--help']\n"
    program += "try: main()\nexcept SystemExit: pass\nassert not {'torch', 'numpy', 'flwr'} & set(sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    for command in ("run", "simulate", "resume", "runs", "report", "export", "score", "search", "path", "methods"):
        assert f" {command} " in shown
