"""The container files say what the project says, and name only what exists. No container is started here."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fednas_core.base.settings import read
from fednas_core.cli.settings import flat
from fednas_core.devices.budgets import parse_budget, parse_budgets

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DEVICES = ("phone", "tablet", "gateway", "workstation")
BASE, TLS, TENSORBOARD = "compose.yaml", "compose.tls.yaml", "compose.tensorboard.yaml"


def compose(*names: str) -> dict[str, Any]:
    """The services of compose files on top of one another, as far as these tests look at them."""
    services: dict[str, Any] = {}
    for name in names:
        for service, table in yaml.safe_load((DOCKER / name).read_text(encoding="utf-8"))["services"].items():
            known = services.setdefault(service, {})
            for key, value in table.items():
                if isinstance(value, list) and key in ("volumes", "ports"):
                    known[key] = known.get(key, []) + value
                elif key == "depends_on" and isinstance(value, dict):
                    known[key] = {**known.get(key, {}), **value}
                else:
                    known[key] = value
    return services


def words(service: dict[str, Any]) -> list[str]:
    return shlex.split(service["command"])


def option(service: dict[str, Any], name: str) -> str:
    found = words(service)
    return found[found.index(name) + 1]


def node_config(service: dict[str, Any]) -> dict[str, Any]:
    from flwr.common.config import parse_config_args

    return parse_config_args([option(service, "--node-config")])


ALL = [(BASE,), (BASE, TLS), (BASE, TENSORBOARD), (BASE, TLS, TENSORBOARD)]


@pytest.mark.parametrize("names", ALL)
def test_services_name_what_exists(names: tuple[str, ...]) -> None:
    services = compose(*names)
    volumes = {volume for name in names for volume in yaml.safe_load((DOCKER / name).read_text()).get("volumes") or ()}
    for name, service in services.items():
        assert service["image"] in ("fednas-server", "fednas-client"), name
        assert set(service.get("depends_on", ())) <= set(services), name
        for mount in service.get("volumes", ()):
            source = mount.partition(":")[0]
            assert source in volumes or source == "./results" or (DOCKER / source).is_file(), mount
        if "image" in service:
            assert (DOCKER / service["build"]["context"]).resolve() == ROOT
            assert (ROOT / service["build"]["dockerfile"]).is_file()
            assert f"AS {service['build']['target']}" in (DOCKER / "Dockerfile").read_text()
            assert service["image"] == f"fednas-{service['build']['target']}"


@pytest.mark.parametrize("names", ALL)
def test_ports_are_shown_to_this_machine_only(names: tuple[str, ...]) -> None:
    ports = [port for service in compose(*names).values() for port in service.get("ports", ())]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("names", ALL[:2])
def test_each_device_is_one_client_with_limits_and_a_budget(names: tuple[str, ...]) -> None:
    services = compose(*names)
    configs = {name: node_config(services[name]) for name in DEVICES}
    assert [config["partition-id"] for config in configs.values()] == [0, 1, 2, 3]
    speeds = []
    for name, config in configs.items():
        worker = services[f"{name}-app"]
        assert config["name"] == name and config["num-partitions"] == len(DEVICES)
        parse_budget(config["budget"], 10**6)
        assert option(worker, "--runtime-api-address") == f"{name}:9094"
        (mount,) = worker["volumes"]
        assert (
            mount == f"{name}:/device"
            and config["state"].startswith("/device")
            and config["models"].startswith("/device")
        )
        assert re.fullmatch(r"\d+[mg]", worker["mem_limit"])
        speeds.append(worker["cpus"])
    assert speeds == sorted(speeds) and speeds[0] < speeds[-1]


def test_the_job_is_valid_and_made_for_these_devices() -> None:
    config = read(flat(tomllib.loads((DOCKER / "demo.toml").read_text(encoding="utf-8"))))
    assert config.output == "/results" and config.data.clients == len(DEVICES)
    services = compose(BASE)
    budgets = {budget.device: budget.macs for budget in parse_budgets(config.budgets, 10**7)}
    assert budgets == {name: parse_budget(node_config(services[name])["budget"], 10**7).macs for name in DEVICES}
    for name in ("conductor", "run", "report"):
        assert any(mount.startswith("./results:/results") for mount in services[name]["volumes"])


def test_tls_leaves_nothing_open_and_gives_each_device_its_own_key() -> None:
    services = compose(BASE, TLS)
    superlink = services["superlink"]
    assert "--enable-supernode-auth" in words(superlink) and "--superexec-auth-secret-file" in words(superlink)
    for name in ("superlink", "conductor", "run", *DEVICES):
        assert "--insecure" not in services[name]["command"], name
    for name in DEVICES:
        assert services[name]["volumes"] == [f"{name}-keys:/keys:ro"]
        assert f"{name}-keys:/keys/nodes/{name}" in services["keys"]["volumes"]
        assert "server-keys" not in str(services[f"{name}-app"])
        assert services[name]["depends_on"]["register"]["condition"] == "service_completed_successfully"
    assert f"--nodes {','.join(DEVICES)}" in services["keys"]["command"]
    assert node_config(services["phone"]) == node_config(compose(BASE)["phone"])


def test_the_images_are_pinned_and_run_as_an_ordinary_user() -> None:
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    pins = set((ROOT / "constraints.txt").read_text().split("\n"))
    torch = re.search(r'ARG TORCH="([^"]+)"', text)
    assert torch and set(torch[1].split()) <= pins
    stages = text.split("\nFROM ")
    assert all(stage.rstrip().rsplit("USER ", 1)[1].split()[0] == "fednas" for stage in stages[1:])
    installed = re.findall(r"pip install ([^\n&]*)", text)
    assert all("-c pins.txt" in line or "--no-deps" in line for line in installed)
    for source in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists() and f"!{name}" in (ROOT / ".dockerignore").read_text().split()


def test_the_proxy_passes_on_the_fleet_api_and_nothing_else() -> None:
    text = re.sub(r"#.*", "", (DOCKER / "proxy" / "nginx.conf").read_text(encoding="utf-8"))
    locations = re.findall(r"location ([^{]+?) \{((?:[^{}]|\{[^{}]*\})*)\}", text)
    assert [place for place, _ in locations] == ["/v1/fleet/", "= /health", "/"]
    assert [re.findall(r"proxy_pass (\S+);", body) for _, body in locations] == [
        ["https://superlink/v1/fleet/"], ["https://superlink/health"], [],
    ]  # fmt: skip
    assert "return 404" in locations[2][1] and "proxy_ssl_verify              on" in text


def test_flower_still_serves_devices_where_the_proxy_lets_them_through() -> None:
    from flwr.superlink.routers.fleet.router import router

    assert router.prefix == "/v1/fleet"


def test_make_and_the_documentation_name_files_that_exist() -> None:
    for text in ((ROOT / "Makefile").read_text(), (ROOT / "docs/deployment.md").read_text()):
        for name in set(re.findall(r"docker/[\w./-]+\.(?:yaml|toml|conf)", text)):
            assert (ROOT / name).is_file(), name
