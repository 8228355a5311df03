"""In which words a search is told, by its kind; one of a kind that is not known here is told in plain ones."""

from __future__ import annotations

from dataclasses import dataclass

PATH = "Networks that won are joined by the bold line and named with their MACs."
FANS = (
    "The lines of an iteration's candidates begin at the winner that they are made of, and end where they were dropped."
)


@dataclass(frozen=True, slots=True)
class Words:
    """How a kind of search is told.

    `won` says what winning means. `score` heads the column of what ranks candidates, where that is not the run's metric
    alone. `chained`: each iteration's candidates are made from the winner before them, so that winners are a family of
    falling cost. `first` and `others` name the start and what is made from it, `kept` what the search leaves.
    """

    won: str
    score: str = ""
    chained: bool = False
    first: str = "network"
    others: str = "smaller ones"
    kept: str = "the networks that the search kept"

    @property
    def shown(self) -> str:
        """What the plot of the search shows."""
        return f"{PATH} {FANS}" if self.chained else PATH


PLAIN = Words("Won: the best of its iteration.", others="others")
KINDS = {
    "netadapt": Words(
        "Won: the most accurate of its iteration, from which the next one's candidates are made.",
        chained=True,
        kept="the winner of each iteration",
    ),
    "evolution": Words(
        "Won: accuracy and cost together score higher than those of any network before.",
        score="Score",
    ),
    "ddc": Words(
        "Won: the highest reward of all students so far, or the highest of those that a budget allows.",
        score="Reward",
        first="teacher",
        others="students with fewer layers",
    ),
}


def words(kind: str) -> Words:
    """Return how a kind of search is told."""
    return KINDS.get(kind, PLAIN)
