from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fednas_core.base.config import RunConfig, WireConfig
from fednas_core.base.errors import ConfigError, RunError
from fednas_core.base.settings import read
from fednas_core.devices.budgets import Allowance, parse_budgets
from fednas_core.devices.info import ClientInfo, Probe, Profile
from fednas_core.engine import cohort as crew_module
from fednas_core.engine import local
from fednas_core.engine.cohort import Crew
from fednas_core.engine.evaluation import Judge
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.run import conduct
from fednas_core.runs.folder import create
from fednas_core.subnets.packing import subnets_of
from fednas_core.tasks.bench import client_images, preprocessing_of, space_of


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read(tiny_pairs)


def quiet(text: str) -> None: ...


class Told(LocalFleet):
    """Clients as told."""

    def __init__(self, config: RunConfig, infos: Sequence[ClientInfo]) -> None:
        super().__init__(config)
        self.infos = infos

    def clients(self) -> Sequence[ClientInfo]:
        return self.infos


def measured(config: RunConfig, slow: float) -> Profile:
    """A device on which a network takes `slow` ms for every million MACs and 0.1 ms besides."""
    space = space_of(config)
    archs = [space.smallest, space.largest, *(space.decode(space.encode(space.largest) // d) for d in (2, 3))]
    probes = []
    for arch in dict.fromkeys(archs):
        ms = 0.1 + slow * space.cost(arch).macs / 1e6
        probes.append(Probe(arch, ms, 0.99 * ms, 1.01 * ms, 9, 1, 1, "2"))
    return Profile(2, 1000, "fp32", 1e9, probes[1].median_ms, 1, "cpu", tuple(probes))


def crew_of(config: RunConfig, infos: Sequence[ClientInfo], said: list[str] | None = None) -> Crew:
    return Crew(Told(config, infos), config, (space_of(config).smallest,), (said if said is not None else []).append)


def test_a_devices_own_budget_precedes_the_runs_and_a_name_means_its_budget(config: RunConfig) -> None:
    config = replace(config, client_budgets="phone,max")
    infos = [ClientInfo("client-00", 5), ClientInfo("client-01", 5), ClientInfo("edge", 5, budget="phone")]
    found = {info.name: info for info in crew_of(config, infos).clients()}
    phone, top = (b.macs for b in parse_budgets(config.budgets, space_of(config).cost(space_of(config).largest).macs))
    limits = {name: info.limit.budget.macs for name, info in found.items() if isinstance(info.limit, Allowance)}
    assert limits == {"client-00": phone, "client-01": top, "edge": phone}
    assert found["edge"].budget == "30%"


def test_without_budgets_there_is_no_limit(config: RunConfig) -> None:
    assert [info.limit for info in crew_of(config, [ClientInfo("a", 1)]).clients()] == [None]


def test_a_budget_in_milliseconds_is_that_of_the_devices_own_measurements(config: RunConfig) -> None:
    infos = [ClientInfo(name, 5, measured(config, slow), "9ms") for name, slow in (("fast", 0.01), ("slow", 50.0))]
    fast, slow = crew_of(config, infos).clients()
    space = space_of(config)
    assert fast.limit and slow.limit
    assert fast.limit.allows(space.largest) and not slow.limit.allows(space.largest)


def test_who_has_room_for_nothing_takes_no_part_and_it_is_said_once(config: RunConfig) -> None:
    said: list[str] = []
    crew = crew_of(config, [ClientInfo("a", 5), ClientInfo("b", 5, budget="1kB")], said)
    assert [info.name for info in crew.clients()] == ["a"] == [info.name for info in crew.clients()]
    assert said == ["b takes no part: no network is small enough for its budget of 1kB"]
    with pytest.raises(RunError, match="no client has room for a network"):
        crew_of(config, [ClientInfo("b", 5, budget="1kB")]).clients()


def test_a_device_that_measured_nothing_cannot_be_timed(config: RunConfig) -> None:
    profile = replace(measured(config, 1.0), probes=())
    with pytest.raises(ConfigError, match="client 'a' has a budget of 20ms, but its device measured no latencies"):
        crew_of(config, [ClientInfo("a", 5, profile, "20ms")]).clients()


def test_what_was_measured_holds_for_the_whole_run(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create(config)
    first = crew_of(config, [ClientInfo("a", 5, measured(config, 1.0), "1ms")])
    first.clients()
    first.aboard(run)
    again = Crew(
        Told(config, [ClientInfo("a", 5, measured(config, 99.0), "1ms"), ClientInfo("b", 5)]),
        config,
        (space_of(config).smallest,),
        quiet,
        run,
    )
    old, new = again.clients()
    assert old.profile == measured(config, 1.0) and new.profile is None
    again.aboard(run)
    noted = run.read_json("devices.json")
    assert set(noted["devices"]) == {"a", "b"} and len(noted["profiles"]) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["devices"]["a"].update(profile="gone"),
        lambda told: told["profiles"].clear(),
        lambda told: told.pop("profiles"),
        lambda told: told.update(devices=[]),
        lambda told: told.update(timed=["gone"]),
        lambda told: next(iter(told["profiles"].values())).pop("cores"),
    ],
)
def test_devices_that_do_not_fit_together_are_refused_naming_the_file(
    config: RunConfig, change: Callable[[dict[str, Any]], Any]
) -> None:
    run = create(config)
    first = crew_of(config, [ClientInfo("a", 5, measured(config, 1.0), "1ms")])
    first.clients()
    first.aboard(run)
    told = run.read_json("devices.json")
    change(told)
    run.write_json("devices.json", told)
    with pytest.raises(RunError, match=r"devices\.json does not fit together .*restore it from a copy, or delete it"):
        Crew(Told(config, []), config, (space_of(config).smallest,), quiet, run)


def test_kinds_of_device_are_timed_on_this_machine_once(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def profiled(*arguments: Any) -> Profile:
        calls.append(1)
        return measured(config, 1.0)

    monkeypatch.setattr(crew_module, "profile", profiled)
    config = replace(config, budgets="camera=2ms,clock=1ms,server=max", client_budgets="camera")
    crew = crew_of(config, [ClientInfo("client-00", 5), ClientInfo("client-01", 5)])
    budgets = parse_budgets(config.budgets, 100)
    allowances = {allowance.budget.device: allowance for allowance in crew.allowances(budgets)}
    assert allowances["camera"].predict_ms and allowances["server"].predict_ms is None
    assert all(info.limit for info in crew.clients())
    assert calls == [1]
    assert crew.here().memory_mb is None, "what is free here now is no limit of clients simulated here"


def test_who_lost_its_private_state_is_announced_and_noted(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, light: None
) -> None:
    """As of devices, whose state the server does not see."""
    monkeypatch.setattr(local, "lost", lambda order, task, up, site: False)
    monkeypatch.setenv("FEDNAS_STATE", str(tmp_path / "before"))
    config, said = replace(config, rounds=3, cohort=0, wire=WireConfig(up="topk"), install=False), list[str]()

    def announce(text: str) -> None:
        said.append(text)
        if text.startswith("round   1"):
            monkeypatch.setenv("FEDNAS_STATE", str(tmp_path / "after"))

    run = conduct(config, LocalFleet(replace(config, workers=1)), announce)
    names = [row["client"] for row in run.events()[0]["clients"]]
    assert [event.get("anew") for event in run.events()] == [None, names, None]
    assert [f"{name} has none of its private state of before and begins anew" for name in names] == sorted(
        text for text in said if "begins anew" in text
    )


def test_every_client_of_a_run_is_handed_a_model_within_its_own_budget(config: RunConfig) -> None:
    space = space_of(config)
    config = replace(config, client_budgets=f"phone,max,{space.cost(space.smallest).bytes}B")
    run = conduct(config, LocalFleet(config), quiet)
    rows = run.read_json("result.json")["clients"]
    assert [row["reason"] for row in rows] == [""] * 4
    assert [row["client"] for row in rows] == ["client-00", "client-01", "client-02", "client-03"]
    most = space.cost(space.largest).macs
    assert rows[0]["macs"] <= 0.3 * most and rows[3]["macs"] <= 0.3 * most
    assert rows[2]["bytes"] == space.cost(space.smallest).bytes
    assert all(0 <= row["accuracy"] <= 1 and row["latency_ms"] > 0 and row["reason"] == "" for row in rows)
    for event in run.events():
        for row in event["clients"]:
            if row["client"] in ("client-00", "client-03"):
                assert row["macs"] <= 0.3 * most
    page = (run.path / "report.html").read_text()
    assert "Each client&#39;s own model" in page or "Each client's own model" in page


@pytest.mark.parametrize("workers", [1, 2])
def test_batch_statistics_travel_with_a_model_that_is_delivered(config: RunConfig, workers: int) -> None:
    config = replace(config, space=replace(config.space, norm="batch"), workers=workers, rounds=1)
    fleet = LocalFleet(config)
    try:
        run = conduct(config, fleet, quiet)
    finally:
        fleet.close()
    rows, models = (run.read_json("result.json")[key] for key in ("clients", "models"))
    assert [row["reason"] for row in rows] == [""] * 4
    best = max(models, key=lambda model: model["validation_accuracy"])
    assert all(row["arch"] == best["arch"] for row in rows)
    space, (_, state) = space_of(config), run.load_checkpoint()
    again = Judge(config, subnets_of(space, state.tensors)).network(space.arch(best["arch"]))
    images = client_images(config, 0)
    with torch.inference_mode():
        right = again(preprocessing_of(config)(images.x)).argmax(1) == images.y
    assert rows[0]["accuracy"] == pytest.approx(float(right.float().mean()), abs=0.021)  # one image, or two


def test_clients_of_one_budget_without_room_are_named_in_one_line(config: RunConfig) -> None:
    said: list[str] = []
    small = [ClientInfo(f"small-{i:02d}", 5, budget="1kB") for i in range(20)]
    assert [info.name for info in crew_of(config, [ClientInfo("a", 5), *small], said).clients()] == ["a"]
    (line,) = said
    assert line.startswith("small-00, small-01") and "and 8 more take no part" in line and "budget of 1kB" in line
