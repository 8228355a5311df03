from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fednas_core.base.errors import MissingExtraError, RunError
from fednas_core.show import page, view
from fednas_core.show.read import read_run
from fednas_core.show.write import write

WriteRun = Callable[..., Path]


class Page(HTMLParser):
    """Collects tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def folder(write_run: WriteRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "20260101-run")
    (folder / "models" / "phone").mkdir(parents=True)
    (folder / "models" / "phone" / "card.md").write_text("card")
    assert write(folder) == folder / "report.html"
    return folder


def test_the_page_tells_the_result(folder: Path) -> None:
    text = Page((folder / "report.html").read_text(encoding="utf-8")).text
    run = read_run(folder)
    for model in run.models:
        assert f"{model.device} {100 * (model.test['accuracy'] or 0):.1f} %" in text
    for part in (
        "run 20260101-run", "30 rounds over 10 clients", "no answer within 600 s", "0.5 M MACs", "3.2e-07",
        "deepfednas", "Time: 1 min 58 s: start 6 s, training 1 min 40 s, report 12.4 s",
        "flwr", "1.41.0", "data.alpha", "3.74 M MACs and 393 k parameters",
    ):  # fmt: skip
        assert part in text, part


def test_the_page_shows_every_plot(folder: Path) -> None:
    assert Page((folder / "report.html").read_text(encoding="utf-8")).tags.count("svg") == 8


def test_the_page_asks_nobody_for_anything(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    found = Page(text)
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(found.tags)
    links = [value for name, value in found.attributes if name in ("src", "href", "xlink:href", "action")]
    assert [link for link in links if not link.startswith("#")] == ["models/phone/card.md"]
    assert "@import" not in text
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {f"#{i}" for n, i in found.attributes if n == "id"}
    assert "default-src 'none'" in text


def test_ids_of_the_page_are_unique(folder: Path) -> None:
    ids = [value for name, value in Page((folder / "report.html").read_text("utf-8")).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_every_colour_of_the_plots_is_defined_light_and_dark(folder: Path) -> None:
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", (folder / "report.html").read_text(encoding="utf-8")))
    light, dark = page.CSS.split("prefers-color-scheme: dark")
    for name in used:
        assert f"{name}:" in light
        assert f"{name}:" in dark or name in ("--sans", "--mono")


def test_the_markdown_tells_the_same(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# phone 9")
    assert "| Device | Test accuracy |" in text
    assert re.search(r"^\| phone \| 9\d\.\d % \|.*\| 0.5 M MACs \|", text, re.MULTILINE)
    assert re.search(r"^\| 30 \| 9\d\.\d % \| 9\d\.\d % \| 9\d\.\d % \|$", text, re.MULTILINE)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_each_clients_own_model_is_told_and_their_spread(folder: Path) -> None:
    handed = json.loads((folder / "result.json").read_text(encoding="utf-8"))["clients"]
    reached = sorted(row["accuracy"] for row in handed if not row["reason"])
    for text in ((folder / name).read_text(encoding="utf-8") for name in ("report.html", "report.md")):
        assert f"{len(reached)} clients of {len(handed)} run a model of their own" in text
        assert f"{100 * sum(reached) / len(reached):.1f}" in text.replace("\u202f", " ")
        assert "went away" in text and "stored there" in text and "30 held out" in text


def test_what_was_found_on_training_images_says_so_and_is_not_bold(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r1")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    result["models"][0]["test_accuracy"] = None
    result["clients"][0] |= {"accuracy": 1.0, "held_out": False}
    result["clients"][1] |= {"accuracy": None, "tested": 0}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    page = write(folder).read_text(encoding="utf-8")
    assert "<td>100.0 % on training images</td>" in page and "<strong>100.0 %" not in page
    assert "<strong>–</strong></td>" in page and "<strong>0.0 %" not in page, "what nobody tested is unknown"
    assert "of which 1 had no image to spare" in page and "on images they trained on" in page
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert "| 100.0 % on training images | 30 of its training |" in markdown and "| phone | – |" in markdown


def test_a_run_in_which_clients_tested_networks_beside_the_server(write_run: WriteRun, tmp_path: Path) -> None:
    found = Page(write(write_run(tmp_path / "r1", tested="beside")).read_text(encoding="utf-8"))
    assert found.tags.count("svg") == 10
    assert "Accuracy on each client's own images" in found.text and "phone 9" in found.text
    assert "on the server's validation split" in found.text and "Server's validation" in found.text
    assert "10 clients, each of which tested what its budget allows, on images of their own" in found.text
    assert "no complete network" not in found.text
    markdown = (tmp_path / "r1" / "report.md").read_text(encoding="utf-8")
    last = (read_run(tmp_path / "r1").rounds[-1].evaluation or ())[0]
    assert last.clients
    mean, worst = (f"{100 * value:.1f} %" for value in (last.clients.spread.mean, last.clients.spread.worst_decile))
    assert f"| phone | all | 500 k | 10 | {mean} | {worst} |" in markdown
    assert f"| 30 | phone | {100 * (last.metrics['accuracy'] or 0):.1f} % | 10 | {mean} | {worst} |" in markdown
    assert re.search(r"^\| workstation \| max \| 3.80 M \| 3 \|", markdown, re.MULTILINE), "one tier, one line"
    assert all(line.endswith("|") for line in markdown.splitlines() if line.startswith("|"))


def test_a_run_without_a_complete_network_on_the_server(write_run: WriteRun, tmp_path: Path) -> None:
    found = Page(write(write_run(tmp_path / "r1", tested="alone")).read_text(encoding="utf-8"))
    assert "% on average over 10 clients" in found.text and "chose no model" not in found.text
    assert "nor did the head and stages.2.1: no complete network exists on the server" in found.text
    assert "The chosen models" not in found.text and "Each client's own model" in found.text
    assert "server's validation" not in found.text.lower()
    assert "Clients' mean accuracy, %" in found.text
    assert found.tags.count("svg") == 10
    markdown = (tmp_path / "r1" / "report.md").read_text(encoding="utf-8")
    assert markdown.startswith("# 68.0 % on average over 10 clients, 50.0 % over the worst tenth")


def test_settings_are_named_as_they_are_given(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r1", rounds=1)
    (folder / "config.toml").write_text('[settings]\nmethod = "fedavg"\n"train.lr" = 0.5\n\n[versions]\nflwr = "1"\n')
    assert view.view_of(read_run(folder)).settings == (("method", "fedavg"), ("train.lr", "0.5"))


def test_hostile_names_and_reasons_are_shown_not_obeyed(hostile: str, write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "<b>run", rounds=8, name=hostile, tested="beside")
    text = write(folder).read_text(encoding="utf-8")
    found = Page(text)
    assert "script" not in found.tags
    assert "b" not in found.tags
    assert "<script>alert('x')</script>" in found.text
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert "<" not in markdown
    row = next(line for line in markdown.splitlines() if line.startswith("| phone"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 10, "a bar in a name makes no column"


def test_a_device_that_is_a_path_gets_no_link(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r1", rounds=1, name="/../..")
    for device in ("phone", "tablet", "workstation"):
        (folder / "models" / device).mkdir(parents=True)
    (folder / "card.md").write_text("x")
    assert (folder / "models" / "phone/../.." / "card.md").is_file()
    assert [model.files for model in view.view_of(read_run(folder)).models] == [(), (), ()]


@pytest.mark.parametrize("rounds", [1, 7])
def test_an_unfinished_run_shows_what_is_there(write_run: WriteRun, rounds: int, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r1", rounds=rounds, clients=1, done=False, failing=False)
    found = Page(write(folder).read_text(encoding="utf-8"))
    assert "This run has not finished" in found.text
    assert f"deepfednas has trained for {rounds} round{'s' if rounds > 1 else ''} over 1 client;" in found.text
    assert found.tags.count("svg") == 6
    assert "The chosen models" not in found.text
    assert "None: every client that was asked gave a usable answer." in found.text
    assert "has not finished" in (folder / "report.md").read_text(encoding="utf-8")


def test_a_run_that_has_only_begun(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r1", done=False)
    (folder / "events.jsonl").unlink()
    found = Page(write(folder).read_text(encoding="utf-8"))
    assert "no round has finished" in found.text
    assert "svg" not in found.tags


def test_many_failures_are_grouped_and_cut(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r1", rounds=40, clients=100, done=False)
    shown = view.view_of(read_run(folder))
    assert [row.times for row in shown.failures] == sorted((row.times for row in shown.failures), reverse=True)
    assert len(shown.failures) == 2
    assert " more" in shown.failures[0].clients


def test_missing_packages_are_named_and_nothing_is_written(
    write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "r1", rounds=1)
    before = sorted(path.name for path in folder.iterdir())
    for package in ("matplotlib", "jinja2"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(MissingExtraError, match=rf"'{package}'.*fednas\[report\]"):
                write(folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_folder_that_cannot_be_written(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r1", rounds=1)
    (folder / "report.html").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        write(folder)


def test_a_report_takes_less_than_three_seconds(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r1", rounds=100, clients=50, tested="beside")
    start = time.process_time()
    write(folder)
    assert time.process_time() - start < 3
