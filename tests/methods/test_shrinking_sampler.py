from __future__ import annotations

from functools import partial

import numpy as np
from contracts.method import CLIENTS
from contracts.mobile import toy_mobile
from contracts.samples import toy_space

from fednas_core.devices.budgets import Allowance, Budget
from fednas_core.devices.info import ClientInfo
from fednas_core.methods.efedsup import Tiers
from fednas_core.methods.shrinking import Shrinking
from fednas_core.methods.superfednas import TrackingSandwich
from fednas_core.methods.tiers import parse_tiers
from fednas_core.search.shrinking import Curriculum
from fednas_core.search.within import within

SPACE = toy_space()


def sandwich() -> TrackingSandwich:
    return TrackingSandwich(SPACE.largest, lambda rng: SPACE.smallest, SPACE.sample, partial(within, SPACE))


def test_what_is_drawn_is_raised_and_keeps_its_role() -> None:
    curriculum = Curriculum(SPACE, ("d", "e", "w"), 6)
    sampler, plain = Shrinking(sandwich(), curriculum), sandwich()
    for round in range(8):
        drawn = plain.assign(round, CLIENTS, np.random.default_rng(round))
        for name, assignment in sampler.assign(round, CLIENTS, np.random.default_rng(round)).items():
            assert assignment.role == drawn[name].role
            assert assignment.arch == curriculum.raised(drawn[name].arch, round)
            assert round or assignment.arch == SPACE.largest
            assert round < 6 or assignment == drawn[name]


def test_no_limit_is_exceeded_and_tiers_stay() -> None:
    space = toy_mobile()
    limit = Allowance(Budget("d", macs=space.cost(space.largest).macs / 4), space)
    sampler = Shrinking(Tiers(space, parse_tiers("min,max", space), rotate=False), Curriculum(space, ("k", "d"), 3))
    clients = [ClientInfo("client-00", 10), ClientInfo("client-01", 10), ClientInfo("client-02", 10, limit=limit)]
    first = sampler.assign(0, clients, np.random.default_rng(0))
    assert [a.tier for a in first.values()] == ["min", "max", "min"]
    assert first["client-00"].arch["d"] == (1, 1) and limit.allows(first["client-02"].arch)
    assert sampler.assign(3, clients, np.random.default_rng(0))["client-00"].arch == space.smallest


def test_it_remembers_what_its_sampler_does() -> None:
    curriculum = Curriculum(SPACE, ("d",), 2)
    sampler, again = Shrinking(sandwich(), curriculum), Shrinking(sandwich(), curriculum)
    for round in range(3):
        for name, assignment in sampler.assign(round, CLIENTS, np.random.default_rng(round)).items():
            sampler.trained(name, assignment)
    assert sum(sampler.state()["largest_rounds"].values()) >= 3
    again.restore(sampler.state())
    assert again.state() == sampler.state()
    assert again.assign(3, CLIENTS, np.random.default_rng(9)) == sampler.assign(3, CLIENTS, np.random.default_rng(9))
