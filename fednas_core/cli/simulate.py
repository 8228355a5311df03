"""Command `simulate`: a comfortable `flwr run` with a SuperLink of its own, live progress and a truthful exit code."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednas_core.base.errors import RunError
from fednas_core.cli.progress import display, going_by
from fednas_core.cli.running import stopped
from fednas_core.cli.settings import Config, Pairs, check_space, gather
from fednas_core.cli.show import INTERRUPTED, Json, guard, leave_if_lacking, note, print_json, refuse
from fednas_core.cli.superlink import CONNECTION, Connection, app_folder, end_tree, superlink
from fednas_core.devices.containers import available_cores

if TYPE_CHECKING:
    from fednas_core.base.config import RunConfig

POLL_S = 0.2
LAST_LINES = 25
NODES_A_CORE = 8
STARTED = re.compile(r"Successfully started run (\d+)")
NAMED = re.compile(r"^run (\S+?)(?:, resumed after round \d+)?$")
"""The first line of a run's greeting: it names the run's folder."""


@guard
def simulate(
    config: Config = None,
    pairs: Pairs = None,
    clients: Annotated[int | None, typer.Option(min=1, help="Number of simulated clients (data.clients).")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="SuperNodes that play them (by default 8 a core).")] = None,
    keep_superlink: Annotated[bool, typer.Option("--keep-superlink", help="Leave Flower running afterwards.")] = False,
    as_json: Json = False,
) -> None:
    """Train through Flower's simulation, as `flwr run` does, on a SuperLink of its own."""
    from fednas_core.base.paths import anchored
    from fednas_core.base.settings import flatten, flower_leaves, read, refuse_idle, rounds_known
    from fednas_core.engine.resuming import resumed
    from fednas_core.runs.folder import output_folder

    began = time.monotonic()
    given = gather(config, pairs) | ({"data.clients": clients} if clients else {})
    settings = resumed(anchored(read(given), Path.cwd()), given)
    refuse_idle(settings, given)
    check_space(settings)
    if told := flower_leaves(settings, given):
        note(told)
    if not settings.resume:
        settings = looked_at(settings)
    root = output_folder(settings)
    values = {key: value for key, value in flatten(settings).items() if key in given} | {"output": str(root)}
    with superlink(keep_superlink) as link:
        stream = Stream(flwr_run(link, values) + played_by(nodes or nodes_for(settings.data.clients)), link)
        try:
            follow(stream, stream.running, root, rounds_known(settings), as_json)
            status, details = link.status(stream.flower_id) if stream.flower_id else ("not started", "")
        except KeyboardInterrupt:
            stopped(root, stream.run_name)
            raise typer.Exit(INTERRUPTED) from None
        finally:
            end_tree(stream.process)
        if keep_superlink:
            note(f"Flower goes on running as process {link.process.pid}; see  FLWR_HOME={link.home} flwr ls")
    wall_s = None if settings.resume else time.monotonic() - began
    conclude(stream, (status, details), root, as_json, wall_s)


def looked_at(config: RunConfig) -> RunConfig:
    """Return what new settings come to; raise `FednasError` for what does not go with the images, before Flower starts.

    A process of its own reads them: what it takes with torch this one, which then only waits, need not hold.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_settled, config).result()


def _settled(config: RunConfig) -> RunConfig:
    from fednas_core.engine.run import settle

    return settle(config)


def conclude(stream: Stream, told: tuple[str, str], root: Path, as_json: bool, wall_s: float | None = None) -> None:
    """Print the result of a run that ended with the status and details `told`, or refuse with the reason.

    Of the command's `wall_s` seconds, those outside the run are Flower's own: its processes start and end.
    """
    from fednas_core.base.units import duration
    from fednas_core.runs.folder import RESULT
    from fednas_core.runs.format import head_of_folder
    from fednas_core.show.ending import ending

    status, details = told
    if status != "finished:completed" or stream.run_name is None:
        note("\n".join(stream.lines[-LAST_LINES:]))
        refuse(f"Flower's run ended as '{status}': {details or 'see the lines above'}", as_json, status=status)
        return
    folder = root / stream.run_name
    try:
        content = (folder / RESULT).read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"the run was completed, but its folder cannot be read here ({error}): setting 'output' must name a folder "
            "that the ServerApp's machine and this one share"
        ) from error
    head = head_of_folder(folder)
    result = head.result(json.loads(content), str(folder / RESULT))
    if as_json:
        print_json(json.loads(content))
    else:
        print(ending(result, head.metric))
        if wall_s is not None:
            print(f"besides {duration(wall_s - result.seconds['total'])} in which Flower starts and ends")
        print()
        print(f"run folder: {folder}\nreport:     {folder / 'report.html'}")
    leave_if_lacking(result)


def flwr_run(link: Connection, values: dict[str, Any]) -> list[str]:
    """Write app and settings where Flower reads them and return the command that starts the run."""
    import tomli_w

    file = link.home / "settings.toml"
    file.write_text(tomli_w.dumps(values), encoding="utf-8")
    return link.command("run", str(app_folder(link)), CONNECTION, "--stream", "--run-config", str(file))


def nodes_for(clients: int) -> int:
    """Return how many simulated SuperNodes play so many clients (0: as many as the data names).

    Each has one order at a time, so that few nodes keep few orders in memory; eight a core keep every core at work.
    """
    most = NODES_A_CORE * available_cores()
    return min(clients or most, most)


def played_by(nodes: int) -> list[str]:
    """Return the options of `flwr run` for so many simulated SuperNodes."""
    return ["--federation-config", f"num-supernodes={nodes}"]


class Stream:
    """A `flwr run --stream`: its process, the lines it has said, the names of the run that they told.

    `now` holds what they say of the time to come, until somebody takes it.
    """

    def __init__(self, command: list[str], link: Connection) -> None:
        self.lines: list[str] = []
        self.flower_id: str | None = None
        self.run_name: str | None = None
        self.now: deque[str] = deque()
        self.process = subprocess.Popen(
            command,
            cwd=link.home,
            env=link.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this command, which ends the others in order
        )
        self._thread = Thread(target=self._listen, daemon=True)
        self._thread.start()

    def running(self) -> bool:
        """Whether there may be more lines."""
        return self._thread.is_alive()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            line = raw.decode("utf-8", errors="replace").rstrip()
            self.lines.append(line)
            if self.flower_id is None and (found := STARTED.search(line)):
                self.flower_id = found[1]
            elif self.run_name is None and (found := NAMED.match(line)):
                self.run_name = found[1]
            elif now := going_by(line):
                self.now.append(now)


def follow(stream: Stream, running: Callable[[], bool], root: Path, rounds: int | None, quiet: bool) -> None:
    """Show rounds as they are finished for as long as the run is `running`."""
    from fednas_core.runs.events import FILE
    from fednas_core.runs.format import head_of_folder

    offset = 0
    with display(rounds, to_stderr=quiet) as show:
        while True:
            ended = not running()
            if stream.run_name:
                folder = root / stream.run_name
                lines, offset = read_lines(folder / FILE, offset)
                head = head_of_folder(folder)
                for line in lines:
                    show(head.event(json.loads(line), str(folder / FILE)), head.metric)
            while stream.now:
                show.now(stream.now.popleft())
            if ended:
                return
            time.sleep(POLL_S)


def read_lines(path: Path, offset: int) -> tuple[list[bytes], int]:
    """Return the complete lines after byte `offset`, and the offset after them."""
    if not path.is_file():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        whole, newline, _ = file.read().rpartition(b"\n")
    return whole.splitlines(), offset + len(whole) + len(newline)
