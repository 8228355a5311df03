"""What control groups of version 2 and 1 say, as Docker, systemd and Kubernetes write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fednas_core.devices.containers import granted_cores, granted_memory, memory_limit, out_of_memory_kills


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("150000 100000\n", 2),
        ("100000 100000\n", 1),
        ("50000 100000", 1),
        ("1000 100000", 1),
        ("max 100000", None),
        ("", None),
        ("nonsense", None),
        ("100000 0", None),
    ],
)
def test_quota_of_version_2_is_rounded_up(tmp_path: Path, text: str, cores: int | None) -> None:
    write(tmp_path, {"own": "0::/\n", "cgroup/cpu.max": text})
    assert granted_cores(tmp_path / "cgroup", tmp_path / "own") == cores


@pytest.mark.parametrize(("quota", "cores"), [("250000", 3), ("-1", None), ("0", None)])
def test_quota_of_version_1(tmp_path: Path, quota: str, cores: int | None) -> None:
    own = "3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"
    period = {"cgroup/cpu/cpu.cfs_period_us": "100000\n"}
    write(tmp_path, {"own": own, "cgroup/cpu/cpu.cfs_quota_us": quota + "\n", **period})
    assert granted_cores(tmp_path / "cgroup", tmp_path / "own") == cores, "a container sees its own group at the root"


def test_the_tightest_of_the_groups_above_holds(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "own": "0::/user.slice/run.scope\n",
            "cgroup/user.slice/cpu.max": "300000 100000",
            "cgroup/user.slice/run.scope/cpu.max": "max 100000",
            "cgroup/user.slice/run.scope/memory.max": "8000000000",
            "cgroup/user.slice/memory.max": "1000000000",
        },
    )
    assert granted_cores(tmp_path / "cgroup", tmp_path / "own") == 3
    assert granted_memory(tmp_path / "cgroup", tmp_path / "own") == 1_000_000_000


def test_memory_of_version_2_counts_the_file_cache_as_free(tmp_path: Path) -> None:
    stat = "anon 1\ninactive_file 60000000\nactive_file 40000000\nbroken line here\n"
    files = {"memory.max": "512000000\n", "memory.current": "300000000\n", "memory.stat": stat}
    write(tmp_path, {"own": "0::/\n", **{f"cgroup/{name}": text for name, text in files.items()}})
    assert granted_memory(tmp_path / "cgroup", tmp_path / "own") == 312_000_000
    (tmp_path / "cgroup/memory.max").write_text("max\n")
    assert granted_memory(tmp_path / "cgroup", tmp_path / "own") is None


def test_memory_of_version_1(tmp_path: Path) -> None:
    files = {"limit_in_bytes": "512000000", "usage_in_bytes": "600000000", "stat": "total_inactive_file 0"}
    write(tmp_path, {"own": "4:memory:/x\n", **{f"cgroup/memory/x/memory.{k}": text for k, text in files.items()}})
    assert granted_memory(tmp_path / "cgroup", tmp_path / "own") == 0
    (tmp_path / "cgroup/memory/x/memory.limit_in_bytes").write_text("9223372036854771712")
    assert granted_memory(tmp_path / "cgroup", tmp_path / "own") is None, "no limit, as version 1 writes it"


def test_systems_without_control_groups(tmp_path: Path) -> None:
    assert granted_cores(tmp_path / "none", tmp_path / "none") is None
    assert granted_memory(tmp_path / "none", tmp_path / "none") is None


def test_the_limit_of_a_container_is_the_tightest_of_its_groups(tmp_path: Path) -> None:
    files = {"own": "0::/a/b\n", "cgroup/a/memory.max": "640000000\n", "cgroup/a/b/memory.max": "max\n"}
    write(tmp_path, files)
    assert memory_limit(tmp_path / "cgroup", tmp_path / "own") == 640_000_000
    write(tmp_path, {"own": "4:memory:/x\n", "cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712\n"})
    (tmp_path / "cgroup/a/memory.max").unlink()
    assert memory_limit(tmp_path / "cgroup", tmp_path / "own") is None


@pytest.mark.parametrize(
    ("own", "file", "text"),
    [
        ("0::/\n", "cgroup/memory.events", "low 0\noom 3\noom_kill {}\noom_group_kill 0\n"),
        ("4:memory:/x\n", "cgroup/memory/x/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"),
        ("", "vmstat", "nr_free_pages 9\noom_kill {}\n"),
    ],
)
def test_kills_for_lack_of_memory_are_counted(tmp_path: Path, own: str, file: str, text: str) -> None:
    def count() -> int:
        return out_of_memory_kills(tmp_path / "cgroup", tmp_path / "own", tmp_path / "vmstat")

    write(tmp_path, {"own": own, file: text.format(0)})
    before = count()
    write(tmp_path, {file: text.format(1)})
    assert count() > before
