"""What a task finds on the device where it runs, besides its order."""

from __future__ import annotations

from dataclasses import dataclass

from fednas_core.data.sources import Facts


@dataclass(frozen=True, slots=True)
class Home:
    """What the configuration of a node says of its device; a simulated client has the defaults.

    `threads` compute a task. `state` is the folder of the device's private state ('': ``~/.cache/fednas/state``),
    `models` the folder that receives models made for it ('': they are verified and measured, but not kept), `data` the
    folder or file with the device's own images ('': its part of the run's data set), and `facts` what the server says
    of the run's images, which these must fit. `budget` is the text of the device's budget ('': none), and
    `disclose` whether it tells how many images of each class it has, where a run asks for that.
    """

    threads: int = 1
    state: str = ""
    models: str = ""
    data: str = ""
    budget: str = ""
    disclose: bool = True
    facts: Facts | None = None
