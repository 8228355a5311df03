from __future__ import annotations

from pathlib import Path

import pytest

from fednas_core.base.errors import ConfigError
from fednas_core.spaces.registry import from_table, load, names

GOOD = "stem = 8\nstages = [8]\nstrides = [1]\nwidths = [1.0]\nexpansions = [1.0]\n"


def test_the_presets() -> None:
    assert {"deepfednas-cifar", "superfednas-cifar", "small"} <= set(names())
    for name in names():
        assert load(name).name == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stem = ", "is not valid TOML"),
        ("stem = 8\n", "field 'stages' is missing"),
        (GOOD + "depth = 3\n", "unknown field 'depth', allowed: name, stem, stages"),
        (GOOD.replace("stem = 8", "stem = 'wide'"), "stem holds 'wide', allowed: a number"),
        (GOOD.replace("stem = 8", "stem = true"), "stem holds True, allowed: a number"),
        (GOOD.replace("stem = 8", "stem = 8.5"), "stem holds 8.5, allowed: a whole number"),
        (GOOD.replace("stem = 8", "stem = inf"), "stem holds inf, allowed: a whole number"),
        (GOOD.replace("stem = 8", "stem = nan"), "stem holds nan, allowed: a whole number"),
        (GOOD.replace("stem = 8", "stem = -8"), "stem = -8, allowed: an integer of at least 1"),
        (GOOD.replace("stages = [8]", "stages = 8"), "stages = 8, allowed: a list of numbers"),
        (GOOD.replace("stages = [8]", "stages = [[8]]"), r"stages holds \[8\], allowed: a number"),
        (GOOD.replace("widths = [1.0]", "widths = [nan]"), r"widths = .*rising order"),
        (GOOD + "norm = 'layer'\n", "norm = 'layer', allowed: none, group, batch"),
        (GOOD + "norm = 1\n", "norm = '1', allowed: none, group, batch"),
    ],
)
def test_a_wrong_file_is_refused_naming_space_field_and_choices(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load(str(path))
    assert "mine" in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load(str(path))


@pytest.mark.parametrize("name", ["resnet", "", "no/such.toml", "../small"])
def test_an_unknown_name_lists_the_presets(name: str) -> None:
    with pytest.raises(ConfigError, match="no such search space; use one of .*small"):
        load(name)


@pytest.mark.parametrize("name", names())
def test_a_kind_is_derived_from_layers_and_comes_back_from_json(name: str) -> None:
    space = load(name).with_personal(["head"])
    assert from_table(space.to_json(), "other") == space
    assert set(space.private(space.largest)) == {"head.weight", "head.bias"} and space.whole(space.smallest).keys() == {
        *space.plan(space.smallest),
        *space.private(space.smallest),
    }
