"""The clients of a run with their devices' budgets: who takes part, what each may be given, and what was measured."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import RunError
from fednas_core.base.units import few
from fednas_core.base.values import Arch, ClientId
from fednas_core.devices.budgets import Allowance, Budget, budget_of, budget_texts
from fednas_core.devices.info import ClientInfo, Limit, Profile
from fednas_core.devices.latency_model import LatencyModel
from fednas_core.devices.limits import client_budget_texts, limits
from fednas_core.devices.profile import from_json, profile, to_json
from fednas_core.exchange.orders import Answer, Failure, Fleet, Order
from fednas_core.runs.folder import RunFolder
from fednas_core.runs.record import RoundEvent
from fednas_core.spaces.space import Elastic
from fednas_core.tasks.bench import device_of, space_of

DEVICES = "devices.json"
HERE = "(this machine)"
"""The name in that file under which the machine of the round loop is noted."""


class Crew:
    """A `Fleet` around another one, whose clients carry the limit that their device's budget sets.

    Clients that can hold none of `archs` take no part. What devices measured is noted in the run's ``devices.json``
    and holds for the whole run, also after a resume: a budget in milliseconds means the same network in every round.
    """

    def __init__(
        self,
        fleet: Fleet,
        config: RunConfig,
        archs: Sequence[Arch],
        announce: Callable[[str], None],
        resumed: RunFolder | None = None,
    ) -> None:
        self._fleet, self._config, self._archs, self._announce = fleet, config, archs, announce
        self._named = budget_texts(config.budgets)
        self._known: dict[ClientId, ClientInfo] = {}
        self._run: RunFolder | None = None
        self._models: list[LatencyModel] = []
        self._trains: Callable[[ClientId], bool] = lambda client: True
        self._trained: set[ClientId] = set()
        self._anew: set[ClientId] = set()
        self._noted = _noted(resumed, space_of(config))

    def aboard(self, run: RunFolder) -> None:
        """From now on note devices in the folder of `run`."""
        self._run = run
        self._note()

    def settle(self, trains: Callable[[ClientId], bool]) -> None:
        """From now on say of each client whether it `trains` in the run at all, which the method settles."""
        self._trains = trains

    def clients(self) -> Sequence[ClientInfo]:
        """Return the clients that can be called on now and have room for a network, sorted by name."""
        there = self._fleet.clients()
        texts = client_budget_texts(self._named, there, self._config.client_budgets)
        new = [self._measured(replace(i, budget=texts[i.name])) for i in there if i.name not in self._known]
        if new:
            found = limits(space_of(self._config), self._named, new, "", self._config.train.batch)
            self._known |= {info.name: replace(info, limit=found[info.name]) for info in new}
            self._tell_who_stays_out([self._known[info.name] for info in new])
            self._note()
        crew = [self._now(info) for info in there]
        able = [info for info in crew if self._fits(info)]
        if crew and not able:
            raise RunError("no client has room for a network: raise the devices' budgets, or choose a smaller space")
        return able

    def train(self, orders: Mapping[ClientId, Order], more: deque[Order] | None = None) -> Iterator[Answer | Failure]:
        """See `Fleet.train`; who has lost its private state is said."""
        for answer in self._fleet.train(orders, more):
            if (
                isinstance(answer, Answer)
                and answer.fresh
                and answer.client in self._trained
                and answer.client not in self._anew
            ):
                self._anew.add(answer.client)
                self._announce(f"{answer.client} has none of its private state of before and begins anew")
            yield answer
            del answer  # nothing here holds a reply when the next one comes

    def note(self, event: RoundEvent) -> RoundEvent:
        """From now on know who trained in the round of an event; return it with who began ``anew`` since the last.

        Whoever trained and has no private state when it trains again has lost it.
        """
        self._trained |= {row.client for row in event.clients}
        if self._anew:
            event = replace(event, anew=tuple(sorted(self._anew)))
            self._anew.clear()
        return event

    def close(self) -> None:
        """See `Fleet.close`."""
        self._fleet.close()

    def allowances(self, budgets: Sequence[Budget]) -> tuple[Allowance, ...]:
        """Return the run's own budgets, for kinds of device; what limits milliseconds is timed on this machine."""
        timed = [ClientInfo(budget.device, 1, self.here(), budget.device) for budget in budgets if budget.timed]
        space = space_of(self._config)
        known = limits(space, self._named, timed, "")
        return tuple(_allowance(known.get(budget.device)) or Allowance(budget, space) for budget in budgets)

    def here(self) -> Profile:
        """Return the profile of the machine that this process runs on, measured once.

        What memory is free now is none of it: who else uses the machine must not decide what simulated clients get.
        """
        found = self._noted_profile(HERE)
        if found is None:
            measured = profile(space_of(self._config), device_of(self._config))
            found = self._keep(HERE, "", replace(measured, memory_mb=None))
        return found

    def latency_ms(self, arch: Arch) -> float:
        """Return milliseconds of one image: the mean over the run's devices, each by a model of what it measured.

        Simulated clients run on this machine. Whose measurements count is noted: a resumed run goes by the same.
        """
        if not self._models:
            space = space_of(self._config)
            told = (from_json(space, self._noted["profiles"][key]) for key in self._timed())
            self._models = [LatencyModel.fit(space, found.probes) for found in told]
        return statistics.fmean(model.predict_ms(arch) for model in self._models)

    def _timed(self) -> list[str]:
        """Return the keys of the profiles that say how long networks take in this run."""
        if "timed" not in self._noted:
            for info in self.clients():
                if info.profile and info.profile.probes:
                    self._keep(info.name, info.budget, info.profile)
            if not self._noted["profiles"]:
                self.here()
            self._noted["timed"] = sorted(self._noted["profiles"])
            self._note()
        timed: list[str] = self._noted["timed"]
        return timed

    def _measured(self, info: ClientInfo) -> ClientInfo:
        """Return the client with the profile that the run noted of it, or where it needs one, with this machine's."""
        noted = self._noted_profile(info.name)
        if noted:
            return replace(info, profile=noted)
        if info.profile is None and budget_of(info.budget, self._config.budgets, space_of(self._config)).timed:
            return replace(info, profile=self.here())  # simulated here
        return info

    def _noted_profile(self, name: str) -> Profile | None:
        found = self._noted["devices"].get(name)
        if not found or not found["profile"]:
            return None
        return from_json(space_of(self._config), self._noted["profiles"][found["profile"]])

    def _keep(self, name: str, budget: str, found: Profile) -> Profile:
        told = to_json(found)
        key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]  # simulated clients share one
        self._noted["profiles"].setdefault(key, told)
        self._noted["devices"].setdefault(name, {"budget": budget, "profile": key})
        return found

    def _note(self) -> None:
        if self._run is None:
            return
        for name, info in self._known.items():
            if name in self._noted["devices"]:
                continue
            if info.profile:
                self._keep(name, info.budget, info.profile)
            self._noted["devices"].setdefault(name, {"budget": info.budget, "profile": ""})
        self._run.write_json(DEVICES, self._noted)

    def _now(self, info: ClientInfo) -> ClientInfo:
        """Return what is known of a client, with the images that it has now, whether it trains and has trained."""
        known, trains = self._known[info.name], self._trains(info.name)
        trained = info.name in self._trained
        return replace(known, examples=info.examples, held_out=info.held_out, trains=trains, trained=trained)

    def _fits(self, info: ClientInfo) -> bool:
        return info.limit is None or any(info.limit.allows(arch) for arch in self._archs)

    def _tell_who_stays_out(self, new: Sequence[ClientInfo]) -> None:
        """Say it once for all clients of one budget: there may be a thousand."""
        out: dict[str, list[ClientId]] = {}
        for info in new:
            if not self._fits(info):
                out.setdefault(info.budget, []).append(info.name)
        for budget, names in out.items():
            take, whose = ("takes", "its") if len(names) == 1 else ("take", "their")
            self._announce(f"{few(names)} {take} no part: no network is small enough for {whose} budget of {budget}")


def _noted(run: RunFolder | None, space: Elastic) -> dict[str, Any]:
    """Return what a run noted of its devices; raise `RunError`, naming the file, unless it fits together."""
    if run is None or not (run.path / DEVICES).is_file():
        return {"devices": {}, "profiles": {}}
    told: dict[str, Any] = run.read_json(DEVICES)
    try:
        for found in told["profiles"].values():
            from_json(space, found)
        named = {"timed": told.get("timed", []), **{name: [row["profile"]] for name, row in told["devices"].items()}}
        for name, keys in named.items():
            for key in filter(None, keys):
                if key not in told["profiles"]:
                    raise ValueError(f"'{name}' names the profile '{key}', which is not there")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"run '{run.id}': {run.path / DEVICES} does not fit together ({error!r}): restore it from a copy, or "
            "delete it: devices are then measured anew, and a budget in milliseconds may come to mean another network"
        ) from error
    return told


def _allowance(limit: Limit | None) -> Allowance | None:
    return limit if isinstance(limit, Allowance) else None
