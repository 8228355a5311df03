"""Commands that say what there is: methods, search spaces, presets and settings."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from fednas_core.cli.settings import deviations
from fednas_core.cli.settings import presets as all_presets
from fednas_core.cli.show import Json, guard, millions, print_json, print_table


@guard
def methods(as_json: Json = False) -> None:
    """List the methods: published systems that train a network."""
    from fednas_core.methods.registry import METHODS

    rows = [(name, entry.title, entry.source) for name, entry in METHODS.items()]
    if as_json:
        print_json([{"name": name, "title": title, "source": source} for name, title, source in rows])
    else:
        print_table(("method", "what it does", "source"), rows)


@guard
def spaces(as_json: Json = False) -> None:
    """List the search spaces, from the smallest to the largest network of each."""
    from fednas_core.spaces.registry import load, names

    rows: list[dict[str, Any]] = []
    for space in map(load, names()):
        costs = {"smallest": space.cost(space.smallest).to_json(), "largest": space.cost(space.largest).to_json()}
        rows.append({"name": space.name, **costs, "size": space.size})
    if as_json:
        print_json(rows)
        return
    head = ("space", "smallest MACs", "largest MACs", "smallest parameters", "largest parameters", "architectures")
    print_table(
        head,
        [
            (
                str(row["name"]),
                *(millions(row[end][cost]) for cost in ("macs", "params") for end in ("smallest", "largest")),
                f"{row['size']:.3g}",
            )
            for row in rows
        ],
    )


@guard
def presets(as_json: Json = False) -> None:
    """List the presets, for --config and `flwr run --run-config`, and what they do not have from the original.

    The head of a preset's file in fednas_core/methods/presets/ says what differs besides settings.
    """
    rows = all_presets()
    marked = {name: deviations(name) for name, _ in rows}
    if as_json:
        print_json([{"name": name, "about": about, "differs": list(map(asdict, marked[name]))} for name, about in rows])
        return
    print_table(("preset", "settings of"), rows)
    for name, found in marked.items():
        if found:
            print(f"\n{name}: not the original's")
            told = [(one.key, one.here, one.published or "not stated", one.why) for one in found]
            print_table(("setting", "here", "published", ""), told)


@guard
def settings(as_json: Json = False) -> None:
    """List every setting with its default and meaning."""
    from fednas_core.settings import describe

    rows = describe()
    if as_json:
        print_json([{"key": key, "default": default, "help": help} for key, default, help in rows])
    else:
        print_table(("setting", "default", "meaning"), [(k, json.dumps(d, ensure_ascii=False), h) for k, d, h in rows])
