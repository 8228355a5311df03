"""Networks tested by the clients themselves: per client, per tier, per network; the worst tenth beside the mean.

Where layers are personal, nobody else can: a network is complete on a client only. Each client tests on images of its
own that it never trains on.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import RunError
from fednas_core.base.metrics import ACCURACY
from fednas_core.base.seeding import stream
from fednas_core.base.values import Arch, ClientId
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.cohort import Crew
from fednas_core.engine.collect import answered
from fednas_core.engine.evaluation import Judge
from fednas_core.exchange.orders import Failure
from fednas_core.exchange.results import Tested
from fednas_core.methods.method import Assignment, request
from fednas_core.runs.record import RoundEvent, Single, Spread, Trial
from fednas_core.show.tested import by_tier
from fednas_core.tasks.bench import testers
from fednas_core.training.evaluate import Evaluation


@dataclass(frozen=True, slots=True)
class Finding:
    """What one client found: accuracy (0 to 1) and mean loss over `images` images, which it never trained on or did."""

    client: ClientId
    tier: str
    accuracy: float
    loss: float
    images: int
    held_out: bool


class Jury:
    """The clients as judges of networks, some of them if there are many.

    `judge` holds the supernet, `own` what each client trained of its own accord. A client whose limit does not allow a
    network is not asked about it, nor one with an architecture of its own about others.
    """

    def __init__(
        self, config: RunConfig, crew: Crew, judge: Judge, run: str, own: Mapping[ClientId, Assignment]
    ) -> None:
        self._config, self._crew, self._judge, self._run, self._own = config, crew, judge, run, own
        self._tiers: dict[ClientId, str] = {}
        self.failures: list[Failure] = []
        """Clients that were asked in vain, and why."""

    def note(self, event: RoundEvent) -> None:
        """Learn from a round's event for which tier its clients trained, which is theirs unless tiers go round."""
        self._tiers |= {row.client: row.tier for row in event.clients if row.tier}

    def validate(self, arch: Arch) -> Evaluation:
        """Evaluate an architecture after training as the mean over clients; raise `RunError` if none answers."""
        found = self.hear(arch, self._config.rounds)
        if not found:
            raise RunError(f"no client could test the network {arch}: start clients, then resume the run")
        return mean(found)

    def hear(self, arch: Arch | None, round: int) -> list[Finding]:
        """Let clients test a network, or each its own, after `round` rounds; return what they found, sorted by name.

        Of a client without images to test on nothing is returned.
        """
        archs = {name: mine.arch for name, mine in self._own.items() if arch in (None, mine.arch)}
        if arch is not None:
            others = (client.name for client in self._crew.clients() if client.name not in self._own)
            archs |= dict.fromkeys(others, arch)
        infos = {client.name: client for client in self._asked(round) if _may(client, archs)}
        trials = [request(round, name, "trial", archs[name]) for name in sorted(infos)]
        answers, failures = answered(self._config, self._crew, trials, self._judge.model, self._run)
        self.failures += failures
        return [
            self._finding(answer.result, infos[answer.client])
            for answer in answers
            if isinstance(answer.result, Tested) and answer.result.tested
        ]

    def _asked(self, round: int) -> Sequence[ClientInfo]:
        everyone = self._crew.clients()
        most = testers(self._config)
        if len(everyone) <= most:
            return everyone
        chosen = stream(self._config.seed, round, "trial").choice(len(everyone), most, replace=False)
        return [everyone[i] for i in sorted(chosen)]

    def _finding(self, found: Tested, client: ClientInfo) -> Finding:
        return Finding(client.name, self._tier(client), found.accuracy, found.loss, found.tested, found.held_out)

    def _tier(self, client: ClientInfo) -> str:
        if client.name in self._own:
            return self._own[client.name].tier or client.budget
        if client.limit is None and self._config.sample.deal == "rotate":
            return client.budget
        return self._tiers.get(client.name) or client.budget


def mean(found: Sequence[Finding]) -> Evaluation:
    """Return the mean over clients, each counting once (FedPer, section 4)."""
    loss, accuracy = (statistics.fmean(getattr(one, name) for one in found) for name in ("loss", "accuracy"))
    return Evaluation(loss, accuracy, sum(one.images for one in found))


def spread(found: Sequence[Finding]) -> Trial:
    """Return what an event tells of a network's trial: over all clients, by tier, and client by client."""
    return Trial(
        spread=Spread.of([one.accuracy for one in found], ACCURACY),
        tested=sum(one.images for one in found),
        held_out=all(one.held_out for one in found),
        tiers=by_tier(((one.tier, one.accuracy) for one in found if one.tier), ACCURACY),
        each=tuple(_single(one) for one in found),
    )


def _single(one: Finding) -> Single:
    found = {ACCURACY.name: one.accuracy}
    return Single(client=one.client, tier=one.tier, metrics=found, loss=one.loss, tested=one.images)


def _may(client: ClientInfo, archs: Mapping[ClientId, Arch]) -> bool:
    return client.name in archs and (client.limit is None or client.limit.allows(archs[client.name]))
