"""A terminal is never a reason to end a run: one that lacks characters, a pipe that nobody reads, a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

from fednas_core.cli.runs import newest

FULL = Path("/dev/full")
MAIN = "from fednas_core.cli import main; main()"


def fednas(*arguments: str, stdout: int | IO[bytes] = subprocess.PIPE, **environment: str) -> subprocess.Popen[bytes]:
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MAIN, *arguments]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **path, **environment})


def options(pairs: dict[str, Any]) -> list[str]:
    given = {**pairs, "rounds": 1, "budgets": "server=max", "install": "false", "sample.budgets": 3}
    return [part for key, value in given.items() for part in ("--set", f"{key}={value}")]


def finished(output: str) -> bool:
    return (Path(output) / str(newest(Path(output))) / "result.json").is_file()


def test_a_run_ends_well_in_a_terminal_without_its_characters(tiny_pairs: dict[str, Any]) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    out, err = (run := fednas("run", *options(tiny_pairs), **ascii_only)).communicate(timeout=300)
    assert run.returncode == 0 and finished(tiny_pairs["output"]), err.decode()
    assert b"Dirichlet \\u03b1 = 1" in out and not err


def test_a_run_ends_well_though_nobody_reads_on(tiny_pairs: dict[str, Any]) -> None:
    run = fednas("run", *options(tiny_pairs))
    assert run.stdout is not None and run.stderr is not None
    assert run.stdout.readline().startswith(b"run ")
    run.stdout.close()
    told = run.stderr.read()
    assert run.wait(timeout=300) == 0 and finished(tiny_pairs["output"]) and not told, told.decode()


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
def test_a_run_ends_well_though_its_log_is_full_but_a_result_that_is_lost_is_said(tiny_pairs: dict[str, Any]) -> None:
    with FULL.open("wb") as full:
        _, err = (run := fednas("run", *options(tiny_pairs), stdout=full)).communicate(timeout=300)
        assert run.returncode == 0 and finished(tiny_pairs["output"]) and not err, err.decode()
        _, err = (lost := fednas("runs", "-o", tiny_pairs["output"], "--json", stdout=full)).communicate(timeout=60)
    assert lost.returncode == 2 and b"cannot be written (No space left on device)" in err and b"Traceback" not in err


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize("command", ["settings", "presets", "--help", "methods"])
def test_lists_are_shown_in_every_encoding(command: str, encoding: str) -> None:
    out, err = (shown := fednas(command, PYTHONIOENCODING=encoding, PYTHONUTF8="0")).communicate(timeout=60)
    assert shown.returncode == 0 and out and not err, err.decode()


def test_a_closed_output_is_one_to_nowhere() -> None:
    command = ["sh", "-c", f"{sys.executable} -c '{MAIN}' settings >&-"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert shown.returncode == 0 and not shown.stderr, shown.stderr.decode()


def test_a_list_that_nobody_reads_to_its_end_says_nothing() -> None:
    shown = fednas("settings")
    assert shown.stdout is not None and shown.stderr is not None
    shown.stdout.close()
    assert shown.stderr.read() == b"" and shown.wait(timeout=60) in (0, 1)
