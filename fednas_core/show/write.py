"""Write the report of a run: report.html and report.md in its folder."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from fednas_core.base import files
from fednas_core.base.errors import MissingExtraError, RunError
from fednas_core.export.card import plain
from fednas_core.show.page import CSS, HTML, MARKDOWN
from fednas_core.show.read import read_run
from fednas_core.show.view import View, view_of


def write(run: Path) -> Path:
    """Write ``report.html`` and ``report.md`` into the run folder `run`, from its files alone; return the page.

    An unfinished run is reported as far as it got. Needs the extra 'report'. Raises `RunError` where the folder is no
    run, a file of it is damaged, or the page cannot be written.
    """
    try:
        jinja2 = importlib.import_module("jinja2")
    except ModuleNotFoundError as error:
        raise MissingExtraError("jinja2", "report", "writing a report") from error
    view = view_of(read_run(run))
    try:
        _replace(run / "report.md", markdown(view, jinja2))
        return _replace(run / "report.html", html(view, jinja2))
    except OSError as error:
        raise RunError(f"{run}: the report cannot be written there ({error}): make room or mend the disk") from error


def html(view: View, jinja2: Any) -> str:
    """Return the page; every text of the run is escaped, only the plots are markup already."""
    markup = importlib.import_module("markupsafe").Markup
    sections = tuple(replace(s, plots=tuple((name, markup(svg)) for name, svg in s.plots)) for s in view.sections)
    template = _environment(jinja2, autoescape=True).from_string(HTML)
    return str(template.render(view=replace(view, sections=sections), css=markup(CSS)))


def markdown(view: View, jinja2: Any) -> str:
    """Return the Markdown; every text of the run is escaped as it is inserted."""
    template = _environment(jinja2, autoescape=False, finalize=plain).from_string(MARKDOWN)
    return str(template.render(view=view)).rstrip() + "\n"


def _environment(jinja2: Any, **settings: object) -> Any:
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, **settings)


def _replace(path: Path, text: str) -> Path:
    files.write(path, text.encode("utf-8", errors="replace"))
    return path
