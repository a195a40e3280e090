"""The deployed host: what ran, what is inside, what shows outside, and what a change touches.

The order of the tests matters: those that change something come last.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.containers import Containers
from tests.harness import MAX_EXECUTIONS, Engine, port_open, wait_for
from tests.public import PublicAddress

from .conftest import NAME, site_yml

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Stack

pytestmark = pytest.mark.timeout(180, func_only=True)

# TCP scan of a list of addresses and ports, run where a neighbour on the network would run it.
SCAN = """
import concurrent.futures, json, socket, sys
targets = [(a, p) for a in sys.argv[1].split(",") for p in range(*map(int, sys.argv[2].split("-")))]
def probe(target):
    with socket.socket() as s:
        s.settimeout(0.5)
        return s.connect_ex(target) == 0
with concurrent.futures.ThreadPoolExecutor(256) as pool:
    print(json.dumps([t for t, hit in zip(targets, pool.map(probe, targets)) if hit]))
"""
LEAST_PORTS = (
    *(22, 80, 443, 2375, 2376, 4369, 5432, 5672, 6379, 8025, 8080, 8081, 8443, 9090, 9100, 9187),
    *(15672, 15692, 25672),
)


class TestRuns:
    """How molecule's own runs went."""

    def test_converging_again_changes_nothing(self, runs: list[dict[str, Any]]) -> None:
        """CS-1: and costs few module executions."""
        converges = [run for run in runs if run["playbook"] == "converge.yml"]
        assert converges[0]["changed"] > 0
        assert converges[-1]["changed_tasks"] == []
        executed = converges[-1]["executions"]
        assert len(executed) <= MAX_EXECUTIONS, executed

    def test_check_of_the_running_stack_touches_nothing(self, stack: Stack) -> None:
        """CS-1: changed=0, and every container lives on."""
        before = stack.lives()
        run = site_yml("--check", "--diff").succeeded()
        assert run.record["changed_tasks"] == []
        assert stack.lives() == before


class TestInside(Containers):
    """The live containers."""

    def test_engine_came_from_the_distribution(self, engine: Engine) -> None:
        """CS-1: the docker role found none and installed one, started by systemd."""
        assert engine.run("systemctl", "is-enabled", "docker").strip() == "enabled"
        settings = json.loads(engine.run("cat", "/etc/docker/daemon.json"))
        assert settings["live-restore"] is True
        assert settings["no-new-privileges"] is True
        assert settings["log-opts"]["max-size"]

    def test_compose_works_by_hand(self, stack: Stack) -> None:
        """CS-5: in the stack's directory, without options."""
        listed = stack.compose("ps", "--format", "{{.Service}}").split()
        assert set(listed) == set(stack.services())


class TestOutside(PublicAddress):
    """The public address."""


class TestReach:
    """UT-7: what of the host and its containers can be reached over the network."""

    @pytest.fixture(scope="class")
    def neighbour(self, engine: Engine, address: str) -> Iterator[Engine]:
        """Another machine on the network, which routes to the containers through the host."""
        image = subprocess.run(
            ["docker", "inspect", "--format={{.Config.Image}}", NAME],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        name = f"{NAME}-neighbour"
        subprocess.run(
            ["docker", "run", "--rm", "--detach", f"--name={name}", "--cap-add=NET_ADMIN",
             image, "sleep", "300"],
            check=True,
            capture_output=True,
        )  # fmt: skip
        there = Engine(("docker", "exec", name))
        try:
            for subnet in self.subnets(engine):
                there.run("ip", "route", "add", subnet, "via", address)
            yield there
        finally:
            subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True)

    @staticmethod
    def subnets(engine: Engine) -> list[str]:
        names = engine.run("docker", "network", "ls", "--quiet", "--filter=driver=bridge").split()
        found = json.loads(engine.run("docker", "network", "inspect", *names))
        return [pool["Subnet"] for item in found for pool in item["IPAM"]["Config"]]

    @staticmethod
    def scan(there: Engine, addresses: list[str], ports: str) -> list[tuple[str, int]]:
        found = json.loads(there.run("python3", "-c", SCAN, ",".join(addresses), ports))
        return [(host, port) for host, port in found]

    @pytest.fixture(scope="class")
    def tempting(self, engine: Engine, stack: Stack) -> Iterator[None]:
        """A program on the host and a container of somebody else's, for everybody to reach."""
        image = stack.services()[stack.api_slot()][0]["Config"]["Image"]
        name, serve = "tempting", ("python3", "-m", "http.server", "--bind", "0.0.0.0")
        engine.run("systemd-run", "--collect", f"--unit={name}", *serve, "8000")
        engine.run(
            *("docker", "run", "--rm", "--detach", f"--name={name}", "--publish=0.0.0.0:8088:8088"),
            *(f"--entrypoint={serve[0]}", image, *serve[1:], "8088"),
        )
        ask = "import socket; [socket.create_connection(('127.0.0.1', p), 1) for p in (8000, 8088)]"
        try:
            wait_for("both listen", lambda: engine.succeeds("python3", "-c", ask))
            yield
        finally:
            engine.run("docker", "rm", "--force", name)
            engine.run("systemctl", "stop", name)

    @pytest.mark.usefixtures("tempting")
    def test_host_shows_ssh_and_nginx(self, neighbour: Engine, address: str) -> None:
        """UT-7, BM-12: every port of the host, whatever else listens or is published there."""
        found = self.scan(neighbour, [address], "1-65536")
        assert [port for _, port in found] == [22, 80, 443]

    @pytest.mark.usefixtures("tempting")
    def test_firewall_outlives_restarts(
        self, neighbour: Engine, engine: Engine, address: str, stack: Stack
    ) -> None:
        """BM-12: of nftables, which flushes every table, and of Docker, which makes its own."""
        for service in ("nftables", "docker"):
            engine.run("systemctl", "restart", service)
            found = self.scan(neighbour, [address], "1-9999")
            assert [port for _, port in found] == [22, 80, 443], service
        stack.wait_healthy()

    def test_containers_are_out_of_reach(self, neighbour: Engine, stack: Stack) -> None:
        """UT-7, BM-12: even for a neighbour that knows their addresses and routes to them."""
        addresses = {
            network["IPAddress"]: name
            for name, item in stack.containers(running=True).items()
            for network in item["NetworkSettings"]["Networks"].values()
            if network["IPAddress"]
        }
        assert len(addresses) >= 4
        for port in LEAST_PORTS:
            for host, _ in self.scan(neighbour, list(addresses), f"{port}-{port + 1}"):
                pytest.fail(f"{addresses[host]} answers on {port}")

    def test_internal_networks_have_no_way_out(self, stack: Stack) -> None:
        """UT-7, CS-5: only nginx's network leads anywhere."""
        for item in stack.containers(running=True).values():
            for name in set(item["NetworkSettings"]["Networks"]) - {"none"}:
                details = json.loads(stack.engine.run("docker", "network", "inspect", name))
                internal = details[0]["Internal"]
                assert internal is not name.endswith("_frontend"), name

    def test_loopback_is_not_enough(self, address: str) -> None:
        """CS-7: without the profile `dev` nothing listens for the databases."""
        assert not port_open(address, 5432)
        assert not port_open(address, 6379)


class TestChange:
    """What a change of one setting touches."""

    def test_reload_recreates_nothing(self, stack: Stack) -> None:
        """CS-12: nginx takes a new header up without a restart."""
        before = stack.lives()
        run = site_yml(nginx_hsts_seconds=31536001).succeeded()
        assert run.changed > 0
        assert stack.lives() == before
        answer = stack.site.get("/health")
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536001"

    def test_one_setting_recreates_one_container(self, stack: Stack) -> None:
        """CS-12: the cache's memory is the cache's business."""
        before = stack.lives(running=True)
        site_yml(nginx_hsts_seconds=31536001, redis_cache_memory_mb=160).succeeded()
        after = stack.lives(running=True)
        touched = {name for name in before | after if before.get(name) != after.get(name)}
        assert touched == {"redis-cache-1"}
        assert stack.one("redis-cache")["HostConfig"]["Memory"] == 160 << 20
        stack.wait_healthy()

    def test_service_comes_and_goes(self, stack: Stack) -> None:
        """CS-7: a profile adds its container; a service left out leaves nothing behind."""
        kept = {"nginx_hsts_seconds": 31536001, "redis_cache_memory_mb": 160}
        before = stack.lives(running=True)
        site_yml(**kept, stack_profiles=["dev"]).succeeded()
        with_ports = stack.lives(running=True)
        assert set(with_ports) - set(before) == {"devports-1"}
        directory = f"{stack.directory}/services/devports"
        assert stack.engine.succeeds("test", "-d", directory)
        assert not port_open(stack.site.address, 5432), "loopback only"
        listening = stack.engine.run(
            "ss", "-Htln", "sport", "=", ":5432", "or", "sport", "=", ":6379"
        )
        assert {line.split()[3] for line in listening.splitlines()} == {
            "127.0.0.1:5432",
            "127.0.0.1:6379",
        }

        services = ["postgres", "redis", "rabbitmq", "api", "usage", "birthdays", "backup", "nginx"]
        left = [*services, "offsite"]
        site_yml(**kept, stack_profiles=["dev"], stack_services=left).succeeded()
        assert stack.lives(running=True) == before
        assert not stack.engine.succeeds("test", "-e", directory)
        assert stack.healthy()
