"""The methods by name: what each is, where it was published, and which code makes it.

That code is imported when a method is made: whoever only lists methods needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fednas_core.base.config import RunConfig

Search = Literal["fitness", "accuracy"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A published system: its title and source, and how it is made, of `parts` over a supernet or as a `contest`.

    `parts`, `contest`, `params` and `cautions` name functions as ``module:function``, as entry points do; '' : it has
    none. `task` is what its clients do, `params` makes what an order of it holds, by round; `personal` names the layers
    that stay on them unless the settings say otherwise, and `space` is the search space likewise; `fixed` methods train
    one architecture only, that of setting ``sample.arch``.
    `search` is what the networks of a trained supernet are searched by.
    `kind` is how the candidates of its contest are found, which says in what terms the search is told; ``{config.….…}``
    in it stands for the value of that setting.
    `cautions` says what a run's clients and settings make of a method that its user should know.
    """

    title: str
    source: str
    parts: str = ""
    contest: str = ""
    task: str = "subnet"
    params: str = "fednas_core.methods.setup:scheduled"
    personal: str = ""
    space: str = "small"
    fixed: bool = False
    search: Search = "fitness"
    kind: str = ""
    cautions: str = ""

    def search_of(self, config: RunConfig) -> str:
        """Return how candidates are found in a run with these settings, '' if none compete."""
        return self.kind.format(config=config)


METHODS: dict[str, Entry] = {
    "fedavg": Entry(
        "Federated averaging of one network",
        "McMahan et al., AISTATS 2017",
        "fednas_core.methods.registry:fedavg",
        fixed=True,
    ),
    "superfednas": Entry(
        "Tracking sandwich, MaxNet weights",
        "Khare et al., ECCV 2024",
        "fednas_core.methods.registry:superfednas",
        search="accuracy",
    ),
    "fedsup": Entry(
        "Sandwich rule on every client",
        "Kim and Yun, arXiv 2206.01366",
        "fednas_core.methods.fedsup:fedsup",
        task="sandwich",
        params="fednas_core.methods.fedsup:sandwiches",
    ),
    "efedsup": Entry(
        "A subnet for each tier of devices",
        "Kim and Yun, arXiv 2206.01366",
        "fednas_core.methods.efedsup:efedsup",
        cautions="fednas_core.methods.efedsup:cautions",
    ),
    "fedper": Entry(
        "Personal layers on a shared base",
        "Arivazhagan et al., arXiv 1912.00818",
        "fednas_core.methods.fedper:fedper",
        personal="head",
        fixed=True,
    ),
    "fednas": Entry(
        "Candidates compete on the devices",
        "Yuan et al., arXiv 2002.06352",
        contest="fednas_core.methods.fednas:fednas",
        kind="{config.fednas.search}",
    ),
    "ddc": Entry(
        "A policy removes layers, devices distil",
        "Pahwa et al., arXiv 1911.12740",
        contest="fednas_core.methods.ddc:ddc",
        kind="ddc",
        space="cnn8",
    ),
    "deepfednas": Entry(
        "Pareto path as curriculum",
        "Khan and Daneshtalab, arXiv 2601.15127",
        "fednas_core.methods.registry:deepfednas",
    ),
}
