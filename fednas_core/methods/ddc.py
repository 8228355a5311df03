"""DDC (Pahwa et al., arXiv 1911.12740) with devices: a policy removes layers of a teacher, clients distil the students.

Server, in each iteration: sample students from the policy; let each that is new be trained from the teacher by a group
of clients of its own and tested by others; reward accuracy, MACs or latency, and parameters; move the policy by
REINFORCE. The devices' part is task ``distil``, the loop `fednas_core.methods.contest`.

A policy that was learnt in one run goes on learning in another, on a subset of the classes or for other devices:
setting ``ddc.policy`` (policy transfer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError
from fednas_core.base.seeding import derive, stream
from fednas_core.base.values import Arch, State
from fednas_core.devices.info import Limit
from fednas_core.methods.contest import Contest
from fednas_core.methods.host import Entrant, Rules
from fednas_core.methods.setup import Setup, annealed, merging, resource_of, scheduled
from fednas_core.search.dropping import Standing
from fednas_core.search.netadapt import Resource
from fednas_core.search.policy import Mask, Policy, Reinforce, sample
from fednas_core.search.rewards import INFEASIBLE, Thresholds, ddc_reward, n2n_reward
from fednas_core.spaces.capabilities import Removable, removable
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.packing import extract
from fednas_core.training.settings import DistilSettings, TrainSettings, train_settings

ITERATIONS, STUDENTS = 25, 4


def ddc(setup: Setup) -> Contest:
    """Return the method that the settings describe; raise `ConfigError` for a space whose layers cannot be removed."""
    config, space = setup.config, removable(setup.space)
    if space is None:
        raise ConfigError(
            f"method 'ddc' removes layers, and space '{setup.space.name}' has none that can go: choose one of kind "
            "'chain', e.g. space.name = 'cnn8', 'vgg11' or 'resnet18'"
        )
    rules = Rules(
        rounds=0 if config.contest.start else config.rounds,
        contest=lambda iteration: config.ddc.rounds,
        finish=config.contest.finish,
        settings=_settings(config),
        seed=config.seed,
        cohort=config.cohort,
        task="distil" if config.ddc.soft else "subnet",
        params=lambda settings: _lesson(config, settings),
        teaches=config.ddc.soft > 0,
        everyone=config.contest.clients == "all",
        testers=round(1 / config.contest.testers),
        sides=setup.sides,
    )
    host = Removal(space, resource_of(setup, config.ddc.resource), config, setup.limits, setup.policy)
    return Contest(space, setup.weights, host, rules, setup.limits, lambda tensors: merging(config, tensors))


def _lesson(config: RunConfig, settings: TrainSettings) -> DistilSettings | TrainSettings:
    """Return how a student trains: from the teacher, or from labels alone."""
    given = config.ddc
    return DistilSettings(settings, given.soft, given.temperature) if given.soft else settings


def _settings(config: RunConfig) -> Any:
    """Return how clients train: teacher and students each from the full rate down to nothing."""
    start = scheduled(config)

    def settings(stage: str, index: int, of: int) -> TrainSettings:
        return start(index) if stage == "start" else annealed(train_settings(config.train), index, of)

    return settings


class Removal:
    """The search (section 3): a policy that says of each layer whether it stays, rewarded for the students it makes.

    `resource` is what T/T_T of the reward is measured in. `family` holds the teacher and, for each limit, the student
    of highest reward that it allows.
    """

    def __init__(
        self,
        space: Removable,
        resource: Resource,
        config: RunConfig,
        limits: Sequence[Limit],
        transferred: State | None = None,
    ) -> None:
        self._space, self._resource, self._config, self._limits = space, resource, config, limits
        self._given, self._seed = config.ddc, config.seed
        self._count = config.contest.candidates or STUDENTS
        self._learner = Reinforce(Policy(derive(config.seed, "policy")), space.descriptors, config.ddc.lr)
        if transferred is not None:
            self._learner.transfer(transferred)
        self._teacher_accuracy = 0.0
        self._judged: dict[Arch, tuple[float, float]] = {}  # accuracy and reward of who was trained and tested
        self._masks: tuple[Mask, ...] = ()
        self._news: list[dict[str, Any]] = []
        self._scores: dict[str, float] = {}
        self.iteration = 0
        self.family: list[Entrant] = []

    def begin(self, start: Entrant, accuracy: float) -> None:
        """See `Host.begin`: the start is the teacher."""
        self.family, self._teacher_accuracy = [start], accuracy

    def propose(self) -> Sequence[Entrant]:
        """See `Host.propose`: students that nobody has judged; where all are known, the policy learns right away."""
        iterations = self._config.contest.iterations or ITERATIONS
        while self.iteration < iterations:
            self._masks = self._sampled()
            new = [arch for arch in dict.fromkeys(map(self._space.masked, self._masks)) if self._new(arch)]
            if new:
                return [self._student(arch, number) for number, arch in enumerate(new, start=1)]
            self._learn(0)
        return ()

    def conclude(self, entrants: Mapping[str, Entrant], standings: Sequence[Standing]) -> None:
        """See `Host.conclude`: reward the students and let the policy learn."""
        for found in standings:
            arch = entrants[found.label].arch
            self._judged[arch] = found.accuracy, self._reward(arch, found.accuracy)
            self._scores[found.label] = self._judged[arch][1]
        self._keep(list(entrants.values()))
        self._learn(len(standings))

    def _sampled(self) -> tuple[Mask, ...]:
        """Return the masks of this iteration: the policy's, or with ``ddc.sampler = random`` nobody's."""
        if self._given.sampler == "random":
            drawn = stream(self._seed, self.iteration, "students").integers(0, 2, (self._count, self._units))
            return tuple(tuple(map(int, row)) for row in drawn)
        rng = torch.Generator().manual_seed(derive(self._seed, self.iteration, "students"))
        return sample(self._learner.policy, self._space.descriptors, self._count, rng)

    @property
    def _units(self) -> int:
        return len(self._space.removable)

    def _new(self, arch: Arch) -> bool:
        return arch != self._space.largest and arch not in self._judged

    def _student(self, arch: Arch, number: int) -> Entrant:
        teacher, label = self.family[0], f"{self.iteration + 1}.{number}"
        if self._given.inherit:
            return Entrant(label, arch, extract(teacher.tensors, self._space.plan(arch)), teacher.label)
        fresh = initial_weights(self._space, derive(self._seed, self.iteration, number, "student"), arch)
        return Entrant(label, arch, {name: fresh[name] for name in self._space.plan(arch)}, teacher.label)

    def _reward(self, arch: Arch, accuracy: float) -> float:
        """Return what a student is worth; a teacher that answers nothing right makes none worth anything."""
        largest = self._space.largest
        share = self._space.cost(arch).params / self._space.cost(largest).params
        ratio = accuracy / self._teacher_accuracy if self._teacher_accuracy else 0.0
        if self._given.reward == "n2n":
            return n2n_reward(ratio, 1 - share, ratio < self._given.accuracy, self.iteration)
        thresholds = Thresholds(self._given.accuracy, self._given.latency, self._given.params)
        time = self._resource(arch) / self._resource(largest)
        return ddc_reward(ratio, time, share, thresholds).total

    def finalists(self, limits: Sequence[Limit]) -> Sequence[Entrant]:
        """See `Host.finalists`: every student that is kept."""
        return self.family[1:]

    def _keep(self, students: Sequence[Entrant]) -> None:
        """Keep the teacher, and of the students the best of all and the best that each limit allows, that one last.

        Of equally rewarded students the cheaper is the better.
        """
        teacher, *known = self.family
        ranked = sorted([*known, *students], key=lambda one: (-self._judged[one.arch][1], self._space.cost(one.arch)))
        best = [next((e for e in ranked if limit.allows(e.arch)), None) for limit in self._limits]
        kept = dict.fromkeys(entrant for entrant in best if entrant is not None and entrant != ranked[0])
        self.family = [teacher, *kept, *ranked[:1]]

    def _learn(self, new: int) -> None:
        """Move the policy by the rewards of this iteration's students, `new` of which were trained for it.

        A student that nobody could train or test is worth nothing that is known: it is left out, and sampled again it
        is proposed again.
        """
        archs = {mask: self._space.masked(mask) for mask in self._masks}
        known = [mask for mask in self._masks if not self._new(archs[mask])]
        rewards = [self._judged[archs[mask]][1] if archs[mask] in self._judged else INFEASIBLE for mask in known]
        self.iteration += 1
        if not known:
            return
        if self._given.sampler == "policy":
            self._learner.step(known, rewards)
        mean = sum(rewards) / len(rewards)
        self._news.append({"iteration": self.iteration, "mean": mean, "best": max(rewards), "new": new})

    def story(self) -> dict[str, Any]:
        """See `Host.story`: the iterations' rewards, and what the leading student is worth."""
        (told, scores), self._news, self._scores = (self._news, self._scores), [], {}
        leader = self.family[-1].arch
        accuracy, reward = self._judged.get(leader, (self._teacher_accuracy, None))
        return {
            "rewards": told,
            "scores": scores,
            "leader": self.family[-1].label,
            "accuracy": accuracy,
            "reward": reward,
        }

    def state(self) -> State:
        """See `Host.state`."""
        learner = self._learner.state()
        data = {
            "iteration": self.iteration,
            "teacher": self._teacher_accuracy,
            "judged": [[arch.to_json(), *found] for arch, found in self._judged.items()],
            "masks": [list(mask) for mask in self._masks],
            "learner": dict(learner.data),
        }
        return State(learner.tensors, data)

    def restore(self, state: State, family: list[Entrant]) -> None:
        """See `Host.restore`."""
        data = state.data
        self.iteration, self.family, self._teacher_accuracy = int(data["iteration"]), family, float(data["teacher"])
        self._judged = {self._space.arch(genes): (float(a), float(r)) for genes, a, r in data["judged"]}
        self._masks = tuple(tuple(map(int, mask)) for mask in data["masks"])
        self._learner.restore(State(state.tensors, data["learner"]))
