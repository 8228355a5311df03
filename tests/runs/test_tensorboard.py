from __future__ import annotations

import sys
from pathlib import Path

import pytest
from contracts.records import event

from fednas_core.base.errors import MissingExtraError, RunError
from fednas_core.runs.folder import RunFolder
from fednas_core.runs.tensorboard import scalars, write_scalars

FAILED = {"client": "c", "reason": "x"}


def test_the_numbers_of_each_round_can_be_read_back(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_scalars(RunFolder(tmp_path), event({"round": 1, "failures": [FAILED]}))
    tested = {"mean": 0.5, "worst_decile": 0.25}
    rows = [{"name": "phone", "accuracy": 0.75}, {"name": "own", "accuracy": 0.5, "clients": tested}]
    write_scalars(RunFolder(tmp_path), event({"round": 2, "accuracy": 0.875, "evaluation": rows, "bytes_up": 7}))
    reader = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    wanted = {
        "training/loss": [1.0, 1.0], "training/accuracy": [0.5, 0.875], "round/bytes_up": [0.0, 7.0],
        "round/bytes_down": [0.0, 0.0], "round/client_macs": [0.0, 0.0], "round/seconds": [1.0, 1.0],
        "round/failures": [1.0, 0.0], "validation/phone": [0.75], "validation/own": [0.5], "clients/own/mean": [0.5],
        "clients/own/worst_decile": [0.25],
    }  # fmt: skip
    assert {name: [point.value for point in reader.Scalars(name)] for name in reader.Tags()["scalars"]} == wanted
    assert [point.step for point in reader.Scalars("validation/phone")] == [2]


def test_what_nobody_knows_is_not_told(tmp_path: Path) -> None:
    assert scalars(event({"loss": None, "accuracy": None}))["training/accuracy"] is None


def test_without_the_extra_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fednas\[tensorboard\]'"):
        write_scalars(RunFolder(tmp_path), event({}))


def test_a_file_in_the_place_of_its_folder_is_said_so(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(RunError, match=r"cannot be written to .*tensorboard'.* resume the run"):
        write_scalars(RunFolder(tmp_path), event({}))
