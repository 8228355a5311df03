"""Every method over TLS and node keys on separate processes, and who is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from contracts.records import recorded
from contracts.samples import TINY
from deployment.harness import Proxy, Site, make_certificates, make_node_key, rehearse, same_history, site

from fednas_core.methods.catalogue import METHODS

pytestmark = pytest.mark.deployment
PAIRS: dict[str, Any] = {**TINY, "data.clients": 3}
CONTEST = {"contest.iterations": 2, "contest.candidates": 4, "contest.finish": 1}
OWN: dict[str, dict[str, Any]] = {
    "fednas": {**CONTEST, "fednas.rounds-max": 2, "fednas.drop-every": 1},
    "ddc": {**CONTEST, "ddc.reward": "n2n"},  # what it rewards is no matter of clocks
}
"""Settings of methods that would else take long, or go by what is measured."""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A SuperLink with TLS and node keys and three SuperNodes, two of which keep their client's process."""
    with site(tmp_path_factory.mktemp("site")) as made:
        for number, config in enumerate(("", "warm=60", "warm=60")):
            made.start_node(number, config)
        yield made


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_has_the_history_of_the_run_in_process(federation: Site, method: str, tmp_path: Path) -> None:
    pairs = {**PAIRS, "method": method, **OWN.get(method, {})}
    start = time.monotonic()
    run = federation.completed(federation.submit({**pairs, "output": str(tmp_path / "site")}), tmp_path / "site")
    seconds = time.monotonic() - start
    same_history(run, rehearse(pairs, tmp_path / "here"))
    assert run.read_json("result.json")["failures"] == 0
    print(
        f"\n{method}: {seconds:.0f} s, rounds of {[round(event['seconds'], 1) for event in recorded(run.events())]} s"
    )


def test_students_are_rewarded_by_the_latency_that_their_devices_measured(federation: Site, tmp_path: Path) -> None:
    pairs = {**PAIRS, "method": "ddc", **CONTEST, "ddc.resource": "ms", "output": str(tmp_path)}
    run = federation.completed(federation.submit(pairs), tmp_path)
    noted = run.read_json("devices.json")
    measured = {noted["devices"][name]["profile"] for name in noted["devices"]}
    assert len(measured) == 3 and set(noted["timed"]) == measured, "each SuperNode measured itself"
    rewards = [one for event in recorded(run.events()) for one in event["search"].get("rewards", ())]
    assert len(rewards) == 2 and all(-1 <= one["mean"] <= one["best"] < 1 for one in rewards)
    tests = [row for event in recorded(run.events()) for row in event["search"].get("tests", ())]
    assert tests and all(0 <= row["accuracy"] <= 1 for row in tests)


def refused(federation: Site, trust: Sequence[str], port: int | None = None) -> str:
    """Start a SuperNode that must not get in, and return what it said when it ended."""
    node = federation.start_node(9, trust=[*trust, "--max-retries", "1"], port=port)
    try:
        federation.wait_for("the end of a refused SuperNode", lambda: node.process.poll() is not None)
    finally:
        node.kill()
    assert node.process.returncode != 0 and "SuperNode ID" not in node.said(), node.said()
    print("\n" + node.said()[-500:])
    return node.said()


def test_an_unregistered_key_is_refused(federation: Site, tmp_path: Path) -> None:
    make_node_key(tmp_path / "stranger")
    assert "Failed to activate SuperNode" in refused(federation, federation.trust(9, tmp_path / "stranger"))


def test_a_node_without_a_key_is_refused(federation: Site) -> None:
    assert "SuperNode authentication is enabled" in refused(federation, federation.trust(9)[:2])


def test_a_plain_text_client_is_refused(federation: Site) -> None:
    assert "Server disconnected without sending a response" in refused(federation, ["--insecure"])


def test_a_server_of_another_authority_is_not_trusted(federation: Site, tmp_path: Path) -> None:
    make_certificates(tmp_path)
    told = ["--root-certificates", f"{tmp_path}/ca.crt", "--auth-supernode-private-key", str(federation.key(0))]
    assert "certificate verify failed" in refused(federation, told).lower()


def test_a_listener_reads_nothing(federation: Site) -> None:
    proxy = Proxy(federation.port)
    try:
        refused(federation, federation.trust(9)[:2], port=proxy.port)
        assert proxy.heard[:2] == b"\x16\x03", "no TLS handshake"  # record type 22, TLS 1.x
        assert b"HTTP" not in proxy.heard
    finally:
        proxy.close()
