"""Commands of a deployment on real devices: thin layers over Flower's own, which they print before they run them.

One folder holds a deployment (see `fednas_core.cli.keys`). All traffic is encrypted, every node has a key of its own,
and the server's programs are separate processes with a database, so that a run outlives a restart of the SuperLink.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fednas_core.base.errors import ConfigError, RunError
from fednas_core.base.paths import expanded, real
from fednas_core.cli.settings import Config, Pairs, gather
from fednas_core.cli.show import INTERRUPTED, Json, guard, note, print_json
from fednas_core.cli.superlink import CONNECTION, end_tree, environment
from fednas_core.devices.containers import available_cores

if TYPE_CHECKING:
    from fednas_core.cli.keys import Bundle

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

app = typer.Typer(name="deploy", help="Train on real devices: keys, server, nodes, runs.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the deployment.")]
Server = Annotated[
    str | None, typer.Option("--server", metavar="HOST:PORT", help="Where the SuperLink is; default: as last time.")
]


@app.command()
@guard
def keys(
    folder: Folder,
    address: Annotated[
        str | None, typer.Option(metavar="HOST[,HOST]", help="Names or IP addresses by which devices reach the server.")
    ] = None,
    nodes: Annotated[str | None, typer.Option(metavar="NAME[,NAME]", help="Names of the devices.")] = None,
    add_node: Annotated[str | None, typer.Option(metavar="NAME", help="Add one device to an existing folder.")] = None,
    as_json: Json = False,
) -> None:
    """Create the server's certificate and a folder with a key for each device; nothing is ever overwritten."""
    from fednas_core.cli.keys import add, make

    root = real(folder)
    if add_node is not None:
        if address is not None or nodes is not None:
            raise ConfigError("--add-node: allowed is one name, without --address and --nodes")
        bundles: tuple[Bundle, ...] = (add(root, add_node),)
    elif address is None or nodes is None:
        missing = "--address" if address is None else "--nodes"
        raise ConfigError(f"{missing} is missing: give both, e.g. --address 192.168.1.10 --nodes phone,tablet")
    else:
        bundles = make(root, _list("--address", address), _list("--nodes", nodes))
    if as_json:
        print_json({"server": str(root / "server"), "nodes": {bundle.name: str(bundle.path) for bundle in bundles}})
        return
    print(f"server's secrets, to stay here: {root / 'server'}")
    for bundle in bundles:
        print(f"for device {bundle.name}, to be copied there: {bundle.path}")
    note(f"next: fednas deploy server {folder}   and beside it: fednas deploy register {folder}")


@app.command()
@guard
def server(
    folder: Folder,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
) -> None:
    """Start the SuperLink and the process that conducts runs; Ctrl-C ends both."""
    from fednas_core.cli.keys import join, server_folder
    from fednas_core.cli.operate import told
    from fednas_core.cli.programs import EVERYWHERE, check_certified, check_free, server_commands
    from fednas_core.cli.supervise import supervise

    root = real(folder)
    place, reached = server_folder(root), EVERYWHERE.get(host, host)
    check_certified(place / "server.crt", reached)
    check_free(host, port)
    link = told(root, join(reached, port))
    supervise(server_commands(place, host, port), place, link.environment)


@app.command()
@guard
def register(folder: Folder, server: Server = None) -> None:
    """Make the keys of all devices known to the SuperLink that runs; those it knows stay as they are."""
    from fednas_core.cli.keys import public_keys, server_folder
    from fednas_core.cli.operate import connect, flwr

    root = real(folder)
    server_folder(root)
    link = connect(root, server)
    for name, path in public_keys(root).items():
        told = flwr(link, "supernode", "register", str(path), CONNECTION, "--name", name)
        words = (told.stderr or told.stdout).strip()
        if told.returncode and "already in use" not in words:
            raise RunError(f"node '{name}' could not be registered: {words[-500:]}")
        print(f"{name}: {'was registered before' if told.returncode else 'registered'}")


@app.command()
@guard
def node(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the deployment, or of the device.")],
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The device, if FOLDER has several.")] = None,
    server: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where the SuperLink is.")] = None,
    budget: Annotated[str, typer.Option(help="The most a network may cost here: 20ms, 2M, 8MB, 20ms+8MB.")] = "",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to train with; default: all cores.")] = None,
    data: Annotated[Path | None, typer.Option(help="The device's own images; default: a part of the run's.")] = None,
    models: Annotated[Path | None, typer.Option(help="Folder for models made for it; default: models/.")] = None,
    state: Annotated[Path | None, typer.Option(help="Folder for its private state; default: state/.")] = None,
    partition_id: Annotated[int | None, typer.Option(min=0, help="Number of its part of the run's data.")] = None,
    num_partitions: Annotated[
        int | None, typer.Option(min=1, help="Play every client of the run whose number is its own modulo this.")
    ] = None,
    warm: Annotated[
        int, typer.Option(min=0, metavar="SECONDS", help="Keep a process with torch loaded this long: faster rounds.")
    ] = 0,
    disclose: Annotated[
        bool, typer.Option(help="Tell how many images of each class it has, where a run asks (data.disclose).")
    ] = True,
) -> None:
    """Start a device's SuperNode; Ctrl-C ends it. A start that is refused is tried again for two minutes."""
    from fednas_core.cli.keys import read_bundle
    from fednas_core.cli.programs import address, node_command
    from fednas_core.cli.supervise import supervise
    from fednas_core.devices.budgets import parse_budget

    root = real(folder)
    bundle = read_bundle(root / "nodes" / name if name else root)
    if budget and not _NAME.fullmatch(budget):  # a bare name means one of the run's setting 'budgets'
        parse_budget(budget, 10**9)
    if data is not None and not expanded(data).exists():
        raise ConfigError(f"--data {data}: there is no such file or folder")
    if data is not None and num_partitions is not None:
        raise ConfigError("--data: a device with images of its own plays one client; leave out --num-partitions")
    part = bundle.part if partition_id is None else partition_id
    if num_partitions is not None and part >= num_partitions:
        raise ConfigError(f"--num-partitions {num_partitions}: allowed are numbers above the partition's, {part}")
    settings: dict[str, str | int] = {"partition-id": part}
    settings |= {"name": bundle.name} if num_partitions is None else {"num-partitions": num_partitions}
    settings |= {"threads": threads or available_cores(), "budget": budget, "data": _absolute(data)}
    settings |= {"warm": warm} if warm else {}
    settings |= {} if disclose else {"disclose": False}
    settings |= {"models": _absolute(models or bundle.path / "models")}
    settings |= {"state": _absolute(state or bundle.path / "state")}
    command = node_command(bundle, address(server or bundle.server), settings)
    supervise([command], bundle.path, environment(bundle.path / "flower"))


@app.command()
@guard
def run(
    folder: Folder,
    config: Config = None,
    pairs: Pairs = None,
    server: Server = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS: in a private network of containers.")] = False,
    as_json: Json = False,
) -> None:
    """Train on the devices that are there, show the rounds, and end with code 0 only if all went well."""
    from fednas_core.base.paths import anchored
    from fednas_core.base.settings import flatten, flower_leaves, read, refuse_idle, rounds_known
    from fednas_core.cli.keys import public_keys, server_folder
    from fednas_core.cli.operate import Watch, connect, say
    from fednas_core.cli.simulate import Stream, conclude, flwr_run, follow
    from fednas_core.runs.folder import output_folder

    root = real(folder)
    if not insecure:
        server_folder(root)
    known = public_keys(root)
    given = gather(config, pairs)
    if known and not given.get("resume"):
        given = {"data.clients": len(known)} | given
    settings = anchored(read(given), Path.cwd())
    if not settings.resume:
        refuse_idle(settings, given)
    if told := flower_leaves(settings, given):
        note(told)
    values = {key: value for key, value in flatten(settings).items() if key in given}
    output = output_folder(settings)
    link = connect(root, server, insecure)
    command = flwr_run(link, values | {"output": str(output)})
    say(command, link)
    stream = Stream(command, link)
    watch = Watch(stream, link)
    try:
        follow(stream, watch.running, output, rounds_known(settings), as_json)
    except KeyboardInterrupt:
        watch.leave()
        raise typer.Exit(INTERRUPTED) from None
    finally:
        end_tree(stream.process)
    conclude(stream, watch.told, output, as_json)


def _list(option: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ConfigError(f"{option} {text!r}: allowed is at least one name, several separated by commas")
    return parts


def _absolute(path: Path | None) -> str:
    return str(real(path)) if path else ""
