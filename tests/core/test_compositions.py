"""Any supernet method with personal layers, any space with any sampler: whole runs, each made by settings alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from contracts.records import recorded

from fednas_core.base.errors import ConfigError
from fednas_core.base.settings import read
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.run import conduct
from fednas_core.runs.folder import RunFolder

MOBILE = """
kind = "mobilenet"
stem = 8
resolutions = [6, 8]
image_size = 8
in_channels = 1
classes = 10

[[stages]]
widths = [8, 16]
depths = [1, 2]
kernels = [3, 5]
expansions = [1, 2]

[[stages]]
widths = [16, 24]
depths = [1, 2]
stride = 2
kernels = [3, 5]
expansions = [1, 2]
squeeze_excite = true
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDNAS_STATE", str(tmp_path / "state"))


@pytest.fixture
def mobile(tmp_path: Path) -> str:
    (tmp_path / "mobile.toml").write_text(MOBILE)
    return str(tmp_path / "mobile.toml")


def run(pairs: dict[str, Any]) -> RunFolder:
    config = read(pairs)
    return conduct(config, LocalFleet(config), lambda text: None)


COMPOSITIONS: dict[str, dict[str, Any]] = {
    "deepfednas, personal heads": {"method": "deepfednas", "personal.layers": "head"},
    "efedsup, robust merge, int8": {
        "method": "efedsup", "merge.rule": "trimmed", "merge.clip": 2.0, "wire.down": "int8", "wire.up": "int8",
    },
    "superfednas on mobilenet": {"method": "superfednas", "space.name": "mobile"},
    "deepfednas on mobilenet, batch norm, federated statistics": {
        "method": "deepfednas", "space.name": "mobile", "space.norm": "batch", "calibrate": "federated",
        "calibration-passes": 2,
    },
    "fedsup on mobilenet, parametric norm, personal heads, budgets": {
        "method": "fedsup", "space.name": "mobile", "space.norm": "parametric", "personal.layers": "head",
        "client-budgets": "phone,server",
    },
    "fedsup, shrinking, sorted channels, damped merge": {
        "method": "fedsup", "space.name": "mobile", "sample.shrink": "k,d,e", "sample.sort": True, "rounds": 5,
        "sample.shrink-until": 0.6, "train.schedule": "constant", "merge.rule": "damped",
    },
    "superfednas, shrinking, own architectures": {
        "method": "superfednas", "sample.shrink": "d,w", "rounds": 5, "personal.arch": True, "evaluate-clients": 4,
        "sample.shrink-until": 0.6, "train.schedule": "constant", "data.holdout": 0.2,
    },
    "fedper on mobilenet, last block": {"method": "fedper", "space.name": "mobile", "personal.blocks": 1},
    "efedsup, asynchronous": {"method": "efedsup", "loop": "async"},
}  # fmt: skip


@pytest.mark.parametrize("more", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_it_runs_and_leaves_every_client_a_model(tiny_pairs: dict[str, Any], mobile: str, more: dict[str, Any]) -> None:
    pairs = {**tiny_pairs, **more}
    if pairs["space.name"] == "mobile":
        pairs["space.name"] = mobile
    folder = run(pairs)
    result, events = folder.read_json("result.json"), recorded(folder.events())
    assert len(events) == pairs["rounds"] and not [event for event in events if event["failures"]]
    assert len(result["clients"]) == 4 and not [row for row in result["clients"] if row["reason"]]
    personal = "personal.layers" in more or more["method"] == "fedper"
    assert bool(result["personal"]) == personal and bool(result["models"]) == (not personal)
    assert all(0 <= row["accuracy"] <= 1 for row in events[-1]["evaluation"])
    assert (folder.path / "report.html").is_file()


def test_sorting_and_what_knows_old_places_do_not_go_together(tiny_pairs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="'sample.sort' gives channels new places"):
        run({**tiny_pairs, "rounds": 4, "sample.shrink": "e", "sample.sort": True, "wire.up": "topk"})
