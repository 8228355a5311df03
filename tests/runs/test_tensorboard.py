from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from fednas_core.base.errors import MissingExtraError, RunError
from fednas_core.runs.folder import RunFolder
from fednas_core.runs.tensorboard import SCALARS, write_scalars


def event(round: int, evaluation: list[dict[str, Any]] | None) -> dict[str, Any]:
    failures = [{"client": "c", "reason": "x"}] * round
    return {**{name: float(round + i) for i, name in enumerate(SCALARS)}, "round": round, "failures": failures,
            "evaluation": evaluation}  # fmt: skip


def test_the_numbers_of_each_round_can_be_read_back(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_scalars(RunFolder(tmp_path), event(1, None))
    tested = {"mean": 0.5, "worst_decile": 0.25}
    rows = [{"name": "phone", "accuracy": 0.75}, {"name": "own", "accuracy": 0.5, "clients": tested}]
    write_scalars(RunFolder(tmp_path), event(2, rows))
    reader = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    for i, name in enumerate(SCALARS.values()):
        assert [(point.step, point.value) for point in reader.Scalars(name)] == [(1, 1.0 + i), (2, 2.0 + i)]
    assert "training/accuracy" in SCALARS.values(), "the name says on which images"
    assert [point.value for point in reader.Scalars("round/failures")] == [1.0, 2.0]
    assert [(point.step, point.value) for point in reader.Scalars("validation/phone")] == [(2, 0.75)]
    assert [(point.step, point.value) for point in reader.Scalars("clients/own/mean")] == [(2, 0.5)]
    assert [(point.step, point.value) for point in reader.Scalars("clients/own/worst_decile")] == [(2, 0.25)]
    assert not [tag for tag in reader.Tags()["scalars"] if tag.startswith("clients/phone")]


def test_without_the_extra_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fednas\[tensorboard\]'"):
        write_scalars(RunFolder(tmp_path), event(1, None))


def test_a_file_in_the_place_of_its_folder_is_said_so(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(RunError, match=r"cannot be written to .*tensorboard'.* resume the run"):
        write_scalars(RunFolder(tmp_path), event(1, None))
