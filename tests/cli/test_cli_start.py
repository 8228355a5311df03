"""Commands that compute no network start at once: they import nothing heavy and take little memory."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from contracts.records import result

from fednas_core.base.settings import read
from fednas_core.base.typed import object_of
from fednas_core.runs.creation import create

HEAVY = {
    "flwr", "matplotlib", "onnx", "onnxruntime", "pandas", "pymoo", "ray", "scipy", "sklearn", "torch", "torchvision",
}  # fmt: skip
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
start_up = importlib.import_module("start_up")  # its lines are those whose seconds it measures
sys.path.remove(str(BENCHMARKS))  # a module there has the name of a folder here
FINISH = f"""
import atexit, json, os, sys
def told():
    status = open('/proc/self/status').read() if sys.platform == 'linux' else 'VmHWM: 0 kB'
    peak = next(line for line in status.splitlines() if line.startswith('VmHWM')).split()[1]
    imported = sorted({HEAVY!r} & set(sys.modules))
    open(os.environ['TOLD'], 'w').write(json.dumps([imported, int(peak) * 1024 / 1e6]))
atexit.register(told)
"""


def start(program: str, folder: Path, *arguments: str) -> tuple[list[str], float, subprocess.CompletedProcess[str]]:
    """Run a program in a folder; return the heavy packages that it imported, its peak in MB, and what it said."""
    told = folder / "told.json"
    environment = {**os.environ, "TOLD": str(told), "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "80"}
    ended = subprocess.run(
        [sys.executable, "-c", FINISH + program, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    imported, peak = json.loads(told.read_text())
    return imported, peak, ended


@pytest.mark.parametrize(("line", "code"), [(line.text, line.code) for line in start_up.lines()])
def test_a_command_that_computes_no_network_imports_nothing_heavy(line: str, code: int, tmp_path: Path) -> None:
    folder = create(read({"output": str(tmp_path / "runs")}))  # so that `runs` has something to list
    imported, peak, ended = start("from fednas_core.cli import main; main()", tmp_path, *shlex.split(line))
    assert ended.returncode == code, ended.stderr
    assert not imported and peak <= start_up.MOST_MB
    if line == "runs":
        assert folder.id in ended.stdout
    if line == "--version":
        assert f"fednas {version('fednas')}\n" in ended.stdout and f"torch {version('torch')}\n" in ended.stdout


def test_every_command_is_among_those_that_are_started() -> None:
    started = [line.text for line in start_up.lines() if "--help" not in line.text]
    for name in start_up.commands():
        assert any(line == name or line.startswith(f"{name} ") for line in started), name
    assert "path --space deepfednas-cifar --budgets 60" in started  # README's own


def test_a_command_that_only_starts_processes_imports_nothing_heavy_until_it_ends(tmp_path: Path) -> None:
    found = object_of(result(personal=["head"], seconds={"total": 1.0}))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "result.json").write_text(json.dumps(found))
    program = f"""
from pathlib import Path
from types import SimpleNamespace
from fednas_core.cli.progress import display
from fednas_core.cli.simulate import conclude
import fednas_core.cli.deploy, fednas_core.cli.operate, fednas_core.cli.programs, fednas_core.cli.supervise
with display(3):
    pass
conclude(SimpleNamespace(lines=[], run_name='x'), ('finished:completed', ''), Path({str(tmp_path)!r}), False, 2.0)
"""
    imported, peak, ended = start(program, tmp_path)
    assert ended.returncode == 0 and "run folder" in ended.stdout, ended.stderr
    assert not imported and peak <= start_up.MOST_MB
