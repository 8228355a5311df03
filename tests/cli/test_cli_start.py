"""Commands that compute no network start at once: they import nothing heavy and take little memory."""

from __future__ import annotations

import json
import os
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
MOST_MB = 60
FINISH = f"""
import atexit, json, os, sys
def told():
    status = open('/proc/self/status').read() if os.path.exists('/proc/self/status') else 'VmHWM: 0 kB'
    peak = next(line for line in status.splitlines() if line.startswith('VmHWM')).split()[1]
    imported = sorted({HEAVY!r} & set(sys.modules))
    open(os.environ['TOLD'], 'w').write(json.dumps([imported, int(peak) / 1000]))
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


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("--help", 0),
        ("--version", 0),
        ("run --help", 0),
        ("methods", 0),
        ("spaces", 0),
        ("presets", 0),
        ("settings", 0),
        ("settings train --json", 0),
        ("runs", 0),
        ("path --space small --budgets 3", 0),
        ("search --space small --max-macs 1M", 0),
        ("deploy --help", 0),
        ("deploy keys site --address 127.0.0.1 --nodes phone", 0),
        ("deploy node site watch", 2),
        ("deploy register nowhere", 2),
        ("deploy run nowhere", 2),
        ("deploy server nowhere", 2),
        ("run --set runds=3", 2),
        ("run --set rounds=many", 2),
        ("run --set resume=nothing", 2),
        ("run --set stale.rate=0.1", 2),
        ("run --set space.name=smal", 2),
        ("simulate --set space.name=smal", 2),
        ("simulate --set resume=nothing", 2),
        ("simulate --set runds=3", 2),
        ("resume nothing", 2),
        ("report nothing", 2),
        ("export nothing --device phone", 2),
        ("profile --threads 9999", 2),
        ("profile --budget much", 2),
    ],
)
def test_a_command_that_computes_no_network_imports_nothing_heavy(line: str, code: int, tmp_path: Path) -> None:
    folder = create(read({"output": str(tmp_path / "runs")}))  # so that `runs` has something to list
    imported, peak, ended = start("from fednas_core.cli import main; main()", tmp_path, *line.split())
    assert ended.returncode == code, ended.stderr
    assert not imported and peak <= MOST_MB
    if line == "runs":
        assert folder.id in ended.stdout
    if line == "--version":
        assert f"fednas {version('fednas')}\n" in ended.stdout and f"torch {version('torch')}\n" in ended.stdout


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
    assert not imported and peak <= MOST_MB
