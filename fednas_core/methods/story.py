"""What a method tells of a round, as values: a row for each client, and how the search of competing networks went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from fednas_core.base.metrics import Metrics
from fednas_core.base.typed import APART, ASIDE, INLINE, from_json, measured

Genes = Mapping[str, object]
"""An architecture as JSON has it (see `fednas_core.base.values.Arch.to_json`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRow:
    """What one client trained in a round, and what that took.

    `role` and `tier` are those of its assignment, `network` the label of what it trained, where networks compete. Loss
    and metrics are means over its `examples` in the last epoch. `macs` and `params` are the network's, `client_macs`
    what the client computed, forward and backward. `staleness`: by how many other replies this one was overtaken.
    """

    client: str
    role: str
    tier: str
    macs: int
    params: int
    examples: int
    loss: float
    metrics: Metrics = field(metadata=measured(""))
    client_macs: int
    seconds: float
    bytes_up: int
    bytes_down: int
    network: str | None = None
    update_norm: float | None = None
    staleness: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """How a network did on the testing clients: its metrics, the gap to the best and that gap's standard error."""

    network: str
    metrics: Metrics = field(metadata=measured(""))
    gap: float
    se: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A network that is trained no further, and why."""

    network: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A network that takes part; `parent` is the label of the one that it was made from, '' if there is none."""

    network: str
    parent: str
    arch: Genes | None
    shape: str
    macs: int
    params: int
    bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of an iteration: its best network, None if nothing is known of any, and those kept, the leader last."""

    winner: str | None
    family: tuple[str, ...]

    @property
    def leader(self) -> str:
        """The network that leads from now on, '' if none is kept."""
        return self.family[-1] if self.family else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Takes:
    """What the leading network takes of a resource (NetAdapt's host)."""

    resource: str
    takes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The best score so far, and those of the last candidates (evolution's host)."""

    score: float
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    """The rewards of one iteration's students, and how many of these were new."""

    iteration: int
    mean: float
    best: float
    new: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewarded:
    """The rewards since the last time, those of single students, and what the leading one is worth (DDC's host)."""

    rewards: tuple[Rewards, ...]
    scores: Mapping[str, float]
    leader: str
    metrics: Metrics = field(metadata=measured(""))
    reward: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """What a host of another kind tells."""

    values: Mapping[str, object] = field(metadata=INLINE)


OwnStory = Takes | Scored | Rewarded | Other
KINDS: Mapping[str, type[Takes] | type[Scored] | type[Rewarded]] = {
    "netadapt": Takes,
    "evolution": Scored,
    "ddc": Rewarded,
}
"""What the hosts of this package tell beyond what every host does, by the kind of their search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What a round was to the search of networks that compete.

    `kind` says how candidates are found; it is the same in the whole run. `round` of `of` is how far the stage (start,
    compete, finish, over) has come, `alive` are the labels of the candidates that were in it. Where networks were
    tested there are `tests`, best first, and who was `dropped`; after the start `start` describes it; after an
    iteration there is an `outcome`, and what the kind of search tells beyond that as `own`. `candidates` are those of
    the next iteration. `finishing` is the network that trains on to be delivered, `over` says that the search is.
    """

    kind: str = field(default="", metadata=ASIDE)
    stage: str
    iteration: int
    round: int
    of: int
    alive: tuple[str, ...]
    tests: tuple[Ranked, ...] | None = None
    dropped: tuple[Dropped, ...] | None = None
    start: Described | None = None
    outcome: Outcome | None = field(default=None, metadata=INLINE)
    finishing: str | None = None
    own: OwnStory | None = field(default=None, metadata={**INLINE, **APART})
    candidates: tuple[Described, ...] = ()
    over: bool

    @classmethod
    def from_json(cls, found: object, kind: str, metrics: Sequence[str]) -> Story:
        """Return the story of a search of this kind; raise `FieldError` unless it is one."""
        story = from_json(cls, found, metrics)
        told = found if isinstance(found, Mapping) else {}
        own = KINDS.get(kind)
        if own is None:
            common = {*(one.name for one in fields(cls)), *(one.name for one in fields(Outcome))}
            rest = {key: value for key, value in told.items() if key not in common}
            return replace(story, kind=kind, own=Other(values=rest) if rest else None)
        there = any(one.name in told for one in fields(own))
        return replace(story, kind=kind, own=from_json(own, told, metrics) if there else None)

    @property
    def scores(self) -> Mapping[str, float]:
        """The scores of single candidates by which they are ranked, where that is not a metric alone."""
        return self.own.scores if isinstance(self.own, Scored | Rewarded) else {}

    @property
    def rewards(self) -> tuple[Rewards, ...]:
        """The rewards of iterations, of a policy that learns from them."""
        return self.own.rewards if isinstance(self.own, Rewarded) else ()
