"""What every service's compose fragment owes, whichever inventory renders it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conftest import Rendered

PUBLISHERS = {"nginx", "devports", "rabbitmq-management"}
# What has to reach nginx as a client does, or somebody outside.
ON_THE_FRONTEND = {
    *PUBLISHERS, "nginx-exporter", "blackbox-exporter", "alertmanager", "grafana", "worker", "acme",
    "offsite",
}  # fmt: skip
# Where each keeps its data.
DATA = {
    "postgres": "/var/lib/postgresql/data",
    "redis-cache": "/data",
    "redis-queue": "/data",
    "rabbitmq": "/var/lib/rabbitmq",
    "backup": "/var/lib/barman",
}
# By profile, the services that need it.
OF_PROFILE = {
    "restore": {"restore", "try"},
    "dev": {"devports"},
    "logging": {"alloy", "loki"},
    "monitoring": {
        "alertmanager",
        "blackbox-exporter",
        "grafana",
        "nginx-exporter",
        "nginx-log",
        "node-exporter",
        "postgres-exporter",
        "prometheus",
        "redis-exporter",
    },
}
# What of the host is read, and written by nobody: its figures, and the containers' log files.
OF_THE_HOST = {"node-exporter": {"/", "/proc", "/sys"}, "alloy": {"/var/lib/docker/containers"}}
# The log files belong to root, and their directories are closed to everybody else.
# What is copied off-site belongs to several.
AS_ROOT = {"alloy", "offsite"}
MAY = {"offsite": ["DAC_READ_SEARCH"]}
"""Capabilities, by service; the others have none."""


def test_every_container_is_hardened(rendered: Rendered) -> None:
    """FS-6: non-root but two, no new privileges, no capabilities, read-only root, limits."""
    for name, service in rendered.services.items():
        where = f"{rendered.inventory}/{name}"
        user, _, group = str(service["user"]).partition(":")
        assert (int(user) > 0) is (name not in AS_ROOT), where
        assert (int(group) > 0) is (name not in AS_ROOT), where
        assert service["read_only"] is True, where
        assert service["cap_drop"] == ["ALL"], where
        assert "no-new-privileges:true" in service["security_opt"], where
        limits = service["deploy"]["resources"]["limits"]
        if rendered.inventory == "dev":
            assert not {"cpus", "memory"} & set(limits), f"{where}: development has no limits"
        else:
            assert float(limits["cpus"]) > 0, where
            assert re.fullmatch(r"\d+M", limits["memory"]), where
        assert int(limits["pids"]) > 0, where
        assert service.get("cap_add") == MAY.get(name), where
        for key in ("privileged", "pid", "ipc", "userns_mode", "devices"):
            assert key not in service, f"{where}: {key}"
        assert service.get("network_mode") in (None, "none"), where


def test_no_container_reaches_the_engine_or_the_host_tree(rendered: Rendered) -> None:
    """FS-6: nothing outside the stack's own directories is mounted."""
    for name, service in rendered.services.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert "docker.sock" not in source, name
            if source in OF_THE_HOST.get(name, ()):
                assert volume.endswith(":ro"), volume
            elif source.startswith("/"):
                own = source.startswith(("/opt/compose-stack", "/dev/shm/compose-stack"))
                assert own or source.endswith("/app/src"), f"{name} mounts {source}"


def test_configuration_is_mounted_read_only_as_a_directory(rendered: Rendered) -> None:
    """FS-6: a file mount would keep the old inode after an atomic replace."""
    for name, service in rendered.services.items():
        for volume in service.get("volumes", []):
            if ":/etc/" in volume:
                assert volume.endswith(":ro"), f"{name}: {volume}"


def test_every_service_has_a_whole_health_check(rendered: Rendered) -> None:
    """CS-6: test, interval, timeout, retries and start_period on all that keep running."""
    for name, service in rendered.long_running().items():
        check = service["healthcheck"]
        for key in ("test", "interval", "timeout", "retries", "start_period"):
            assert check.get(key), f"{rendered.inventory}/{name}: {key}"


def test_health_checks_ask_the_service_itself(rendered: Rendered) -> None:
    """CS-6: pg_isready with user and database, PING, /health, /api/health."""
    checks = {
        name: str(item["healthcheck"]["test"]) for name, item in rendered.long_running().items()
    }
    assert "pg_isready" in checks["postgres"]
    assert "--username=" in checks["postgres"]
    assert "--dbname=" in checks["postgres"]
    assert "ping" in checks["redis-cache"].lower()
    assert "ping" in checks["redis-queue"].lower()
    assert "/health" in checks["nginx"]
    assert "/grafana/api/health" in checks["grafana"]
    assert "/ready" in checks["loki"]
    assert "/-/ready" in rendered.file("alloy", "boot/check.sh")
    for slot in ("api-blue", "api-green"):
        if slot in checks:
            assert "healthcheck" in checks[slot]


def test_every_container_gets_time_to_stop(rendered: Rendered) -> None:
    """FS-6: Docker's ten seconds would kill PostgreSQL in the middle of a shutdown."""
    for name, service in rendered.services.items():
        assert re.fullmatch(r"\d+s", service["stop_grace_period"]), name
    assert int(rendered.services["postgres"]["stop_grace_period"][:-1]) >= 120


def test_only_nginx_publishes_ports(rendered: Rendered) -> None:
    """UT-7, CS-7: and the developer's ports, under their profile, on loopback."""
    publishers = {name for name, service in rendered.services.items() if service.get("ports")}
    assert publishers <= PUBLISHERS
    assert "nginx" in publishers
    assert rendered.services["devports"]["profiles"] == ["dev"]
    for name in publishers - {"nginx"}:
        ports = rendered.services[name]["ports"]
        assert all(str(port).startswith("127.0.0.1:") for port in ports), name
    for name, service in rendered.services.items():
        profiles = [profile for profile, names in OF_PROFILE.items() if name in names]
        assert service.get("profiles", []) == profiles, name


def test_networks_part_the_services(rendered: Rendered) -> None:
    """CS-5, UT-7: three networks, two without a way out; nginx on the frontend alone."""
    assert set(rendered.networks) == {"frontend", "backend", "monitoring"}
    assert rendered.networks["backend"]["internal"] is True
    assert rendered.networks["monitoring"]["internal"] is True
    assert set(rendered.services["nginx"]["networks"]) == {"frontend"}
    for name, service in rendered.services.items():
        if name not in ON_THE_FRONTEND:
            assert "frontend" not in service.get("networks", []), name
            assert service.get("networks") or service.get("network_mode") == "none", name


def test_start_order(rendered: Rendered) -> None:
    """FS-2: databases healthy, then migrations, then the API, then nginx; CS-5: by depends_on."""
    services = rendered.services
    assert services["postgres-setup"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    for colour in ("blue", "green"):
        slot, migrate = f"api-{colour}", f"migrate-{colour}"
        before = services[migrate]["depends_on"]["postgres-setup"]
        assert before["condition"] == "service_completed_successfully"
        needs = services[slot]["depends_on"]
        assert needs[migrate]["condition"] == "service_completed_successfully"
        for database in ("postgres", "redis-cache", "redis-queue"):
            assert needs[database]["condition"] == "service_healthy", slot
        assert services["nginx"]["depends_on"][slot]["condition"] == "service_healthy"


def test_workers_have_a_way_out_only_where_it_leads_somewhere(rendered: Rendered) -> None:
    """UT-7, BM-3: to the email service; the stand-in is on the network they share anyway."""
    networks = set(rendered.services["worker"]["networks"])
    assert networks == {"backend", "monitoring"} | (
        {"frontend"} if rendered.inventory == "production" else set()
    )
    assert ("mailbox" in rendered.services) is (rendered.inventory == "dev")


def test_the_copy_is_made_by_who_only_reads(rendered: Rendered) -> None:
    """FS-7: a way out only where the repository is on another machine."""
    service, away = rendered.services["offsite"], rendered.inventory == "production"
    mounts = [volume.split(":", 1)[1] for volume in service["volumes"]]
    assert sorted(target for target in mounts if target.startswith("/source")) == [
        "/source/backup:ro", "/source/secrets:ro", "/source/state:ro", "/source/tls:ro",
    ]  # fmt: skip
    assert "/redis:ro" in mounts
    assert ("/repository" in mounts) is not away
    assert set(service["networks"]) == {"monitoring"} | ({"frontend"} if away else set())
    assert service["secrets"] == ["offsite_password", *(["offsite_ssh_key"] if away else [])]


def test_a_drill_has_neither_key_nor_network(rendered: Rendered) -> None:
    """FS-6, FS-8: it asks the keeper of the copy, and its server lets in its own application."""

    def holders(volume: str) -> set[str]:
        mounts = {name: item.get("volumes", []) for name, item in rendered.services.items()}
        return {name for name in mounts if any(m.startswith(f"{volume}:") for m in mounts[name])}

    assert holders("offsite-socket") == {"backup", "offsite"}
    assert "offsite-socket:/run/offsite:ro" in rendered.services["backup"]["volumes"]
    assert holders("drill-socket") == {"drill", "drill-api"}
    for name in ("drill", "drill-api"):
        assert rendered.services[name]["network_mode"] == "none"
        assert "secrets" not in rendered.services[name]
    asked = {name: item.get("secrets", []) for name, item in rendered.services.items()}
    assert [name for name in asked if "offsite_password" in asked[name]] == ["offsite"]


def test_a_token_is_for_the_workers_alone(rendered: Rendered, changed: Rendered) -> None:
    """BM-3, FS-8: and only where secrets_values has one; it is never made up."""
    name = "birthdays_email_token"
    holders = {item for item, s in changed.services.items() if name in s.get("secrets", [])}
    assert holders == {"worker"}
    environment = changed.services["worker"]["environment"]
    assert environment["EMAIL_TOKEN_FILE"] == f"/run/secrets/{name}"
    assert "EMAIL_TOKEN_FILE" not in rendered.services["worker"]["environment"]
    assert name not in rendered.services["worker"]["secrets"]


def test_containers_tell_the_versions_of_their_secrets(rendered: Rendered) -> None:
    """FS-8: a version that none of them tells is taken for unused, and refused from then on."""
    holders = {name: s for name, s in rendered.services.items() if s.get("secrets")}
    assert {"api-blue", "worker", "backup", "migrate-blue"} <= holders.keys()
    for name, service in holders.items():
        told = str(service["labels"]["compose-stack.secrets"]).split()
        assert told == ["1"] * len(service["secrets"]), name


def test_no_secret_in_the_environment(rendered: Rendered) -> None:
    """FS-8: the environment names files that hold secrets, never secrets."""
    for name, service in rendered.services.items():
        environment = service.get("environment", {})
        assert isinstance(environment, dict), f"{name}: write the environment as a mapping"
        for key, value in environment.items():
            if re.search(r"PASS|SECRET|TOKEN|KEY", key):
                assert key.endswith("_FILE"), f"{name}: {key}"
                assert str(value).startswith("/run/secrets/"), f"{name}: {key}"
            assert not re.search(r"://[^/@\s]+:[^/@\s]+@", str(value)), f"{name}: {key}"


def test_data_lives_in_named_volumes_or_where_the_inventory_says(rendered: Rendered) -> None:
    """CS-5, BM-15: the data path itself is the volume, not some other path beside it."""
    for name, target in DATA.items():
        mounted = dict(volume.split(":")[1::-1] for volume in rendered.services[name]["volumes"])
        assert mounted[target] == f"{name}-data"
        assert f"{name}-data" in rendered.volumes


def test_compose_removes_no_data(rendered: Rendered) -> None:
    """CS-5: what cannot be made again lies in volumes that Compose did not make."""
    made = set(json.loads((rendered.directory / "volumes.json").read_text()))
    external = {volume["name"] for volume in rendered.volumes.values() if volume.get("external")}
    assert external == made
    rest = {name for name, volume in rendered.volumes.items() if not volume.get("external")}
    sockets = {"postgres-socket", "drill-socket", "offsite-socket"}
    assert rest == sockets | {"nginx-log", "drill-data", "alloy-data"}


def test_images_are_named_by_reference_never_latest(rendered: Rendered) -> None:
    """A tag that moves would change a running stack behind the operator's back."""
    for name, service in rendered.services.items():
        assert service["image"].startswith("example/"), f"{name} does not use images_refs"
        assert "build" not in service, name


def test_application_limits(rendered: Rendered) -> None:
    """UT-11: 512 MB and half a core by default; production sets its own, development none."""
    if rendered.inventory == "dev":
        return
    limits = rendered.services["api-blue"]["deploy"]["resources"]["limits"]
    assert limits["memory"] == "512M"
    assert float(limits["cpus"]) == (1.0 if rendered.inventory == "production" else 0.5)


def test_logs_are_bounded_and_say_whose_they_are(rendered: Rendered) -> None:
    """UT-9: a container that talks too much must not fill the disk; a line names its service."""
    for name, service in rendered.services.items():
        assert service["logging"]["driver"] == "json-file", name
        options = service["logging"]["options"]
        assert options["max-size"], name
        for label in ("project", "service", "container-number"):
            assert f"com.docker.compose.{label}" in options["labels"].split(","), name


def test_postgresql_is_tuned_from_its_memory_limit(rendered: Rendered) -> None:
    """BM-5: in development, which has no limits, from what it would be."""
    limits = rendered.services["postgres"]["deploy"]["resources"]["limits"]
    memory = int(limits.get("memory", "512M")[:-1])
    settings = dict(
        re.findall(
            r"^(\w+) = (\d+)(?:MB|kB)?$",
            "".join(
                path.read_text()
                for path in sorted((rendered.directory / "postgres" / "current").rglob("*.conf"))
            ),
            re.MULTILINE,
        )
    )
    assert int(settings["shared_buffers"]) == memory // 4
    assert int(settings["effective_cache_size"]) == memory * 3 // 4
    assert int(settings["work_mem"]) * int(settings["max_connections"]) / 1024 < memory
    assert 0 < int(settings["maintenance_work_mem"]) <= memory // 8


def test_redis_forgets_only_the_cache(rendered: Rendered) -> None:
    """UT-6, FS-5: LRU below a ceiling for the cache alone; both append-only."""
    policies = {"cache": "allkeys-lru", "queue": "noeviction"}
    for instance, policy in policies.items():
        text = rendered.file("redis", f"{instance}/redis.conf")
        assert re.search(rf"^maxmemory-policy {policy}$", text, re.MULTILINE), instance
        assert re.search(r"^maxmemory \d+mb$", text, re.MULTILINE), instance
        assert re.search(r"^appendonly yes$", text, re.MULTILINE), instance
