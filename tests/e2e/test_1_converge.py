"""site.yml on this machine: from nothing, again, in check mode, and by hand."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from tests.containers import Containers
from tests.harness import MAX_EXECUTIONS, playbook, port_open, wait_for
from tests.public import PublicAddress

from .conftest import INVENTORY, SETTINGS, site_yml

if TYPE_CHECKING:
    from tests.harness import Run, Stack

pytestmark = pytest.mark.timeout(240, func_only=True)


class TestConverge:
    """One command, and the same command again."""

    def test_healthy_within_a_minute(self, deployed: Run, stack: Stack) -> None:
        """CS-1, CS-15: once the images are there, from nothing to 200 on HTTPS."""
        assert deployed.changed > 0
        assert stack.healthy()
        found = stack.containers(running=True).values()
        created = min(datetime.fromisoformat(item["Created"]) for item in found)
        healthy = max(
            min(
                datetime.fromisoformat(entry["End"])
                for entry in item["State"]["Health"]["Log"]
                if entry["ExitCode"] == 0
            )
            for item in found
        )
        assert (healthy - created).total_seconds() < 60

    def test_says_what_runs_and_where(self, deployed: Run, stack: Stack) -> None:
        """CS-1: the run ends with the address, the services and the images' source."""
        assert f"https://localhost:{stack.site.https_port}" in deployed.output
        assert "distro" in deployed.output or "registry" in deployed.output

    def test_again_changes_nothing(self, stack: Stack) -> None:
        """CS-1: changed=0, few module executions, and no container touched."""
        before = stack.lives()
        run = site_yml().succeeded()
        assert run.record["changed_tasks"] == []
        assert run.executions <= MAX_EXECUTIONS, run.record["executions"]
        assert stack.lives() == before

    def test_check_changes_nothing(self, stack: Stack) -> None:
        """CS-1: --check --diff of a running stack."""
        before = stack.lives()
        run = site_yml("--check", "--diff").succeeded()
        assert run.record["changed_tasks"] == []
        assert stack.lives() == before

    def test_check_announces_a_change(self, stack: Stack) -> None:
        """CS-1: the diff shows the new value, and nothing happens."""
        before = stack.lives()
        run = site_yml("--check", "--diff", redis_cache_memory_mb=160).succeeded()
        assert run.changed > 0
        assert "redis-cache" in run.output
        assert stack.lives() == before
        assert site_yml("--check").succeeded().changed == 0

    def test_restart_by_hand(self, stack: Stack) -> None:
        """CS-5, FS-4: `docker compose restart` in the directory; tables survive it."""
        body = {"name": f"kept {uuid.uuid4()}", "price_cents": 1}
        path = stack.site.patiently("POST", "/api/items", json=body).headers["Location"]
        stack.compose("restart")
        stack.wait_healthy()
        assert stack.site.patiently("GET", path).json()["name"] == body["name"]
        assert site_yml().succeeded().record["changed_tasks"] == []


class TestCertificate:
    """`make certs`."""

    def test_shown(self, stack: Stack) -> None:
        """CS-13: what is served, and how to trust it; nothing is renewed that nobody asked for."""
        served = stack.site.fingerprint()
        run = playbook(INVENTORY, name="certs.yml").succeeded()
        assert run.record["changed_tasks"] == []
        assert served in run.output
        assert stack.site.fingerprint() == served

    def test_renewed(self, stack: Stack) -> None:
        """CS-13: by the same authority, without touching a container, and site.yml knows of it."""
        before, lives = stack.site.fingerprint(), stack.lives()
        authority = stack.site.ca.read_text()
        run = playbook(INVENTORY, name="certs.yml", variables={"tls_renew": True}).succeeded()
        # nginx reads it in its own time.
        wait_for("another certificate", lambda: stack.site.fingerprint() != before, 10)
        assert stack.site.fingerprint() in run.output
        assert before not in run.output
        assert stack.site.ca.read_text() == authority
        said = "".join(run.output.split())
        assert "".join(authority.split()) in said, "what to trust is not shown"
        for way in ("update-ca-certificates", "curl --cacert"):
            assert way in run.output
        assert stack.lives() == lives
        assert site_yml().succeeded().record["changed_tasks"] == []
        assert stack.lives() == lives


class TestInside(Containers):
    """The live containers; on this machine the databases live in memory."""

    data_mount = "bind"

    # Restarting by hand has started everything at once, so order shows on a host that was not.
    test_start_order = None  # type: ignore[assignment]

    def searched(self) -> str:
        # Other stacks may share this machine; the engine's store is searched on the molecule host.
        return "/var/log /etc"

    def test_databases_are_in_memory(self, stack: Stack) -> None:
        """BM-7, BM-15: the directories that the inventory names."""
        for service, setting in (
            ("postgres", "postgres_data_dir"),
            ("redis-cache", "redis_data_dir"),
        ):
            sources = [mount.get("Source", "") for mount in stack.one(service)["Mounts"]]
            assert any(source.startswith(str(SETTINGS[setting])) for source in sources), service


class TestOutside(PublicAddress):
    """The public address."""

    def test_published_on_loopback_only(self, stack: Stack) -> None:
        """UT-7: a laptop's stack is the laptop's alone."""
        bindings = [
            binding["HostIp"]
            for items in stack.services().values()
            for item in items
            for hosts in (item["NetworkSettings"]["Ports"] or {}).values()
            for binding in hosts or []
        ]
        assert set(bindings) == {"127.0.0.1"}
        assert not port_open("127.0.0.1", int(SETTINGS["devports_postgres_port"]))
