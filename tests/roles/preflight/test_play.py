"""The preflight, run for real against this machine, which it must leave as it is."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import tomllib
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.harness import ROOT, Run, listening, playbook

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBLEM = re.compile(r"^\s+(\d+)\. (.+)$", re.MULTILINE)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Any]:
    """Variables that nothing is wrong with."""
    return {
        "stack_dir": str(tmp_path / "stack"),
        "stack_project": "preflight-test",
        "nginx_http_port": free_port(),
        "nginx_https_port": free_port(),
        "rabbitmq_management_port": free_port(),
        "preflight_memory_mb": 64,
        "preflight_disk_stack_mb": 1,
        "preflight_disk_docker_mb": 1,
        "preflight_disk_images_mb": 1,
    }


def preflight(variables: dict[str, Any], *options: str) -> Run:
    return playbook(
        "localhost,",
        *options,
        name="../tests/roles/preflight/play.yml",
        variables={
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            **variables,
        },
    )


def shown_facts(run: Run) -> dict[str, Any]:
    _, _, rest = run.succeeded().output.partition("    preflight_facts:\n")
    return dict(yaml.safe_load(rest.split("\n\n")[0]))


def report(run: Run) -> str:
    """The message of a failed run, as the result shows it."""
    run.failed()
    assert run.changed == 0
    return run.output[run.output.index("fatal: ") :]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, int]]:
    """One run in which all that can be wrong here is wrong."""
    base = tmp_path_factory.mktemp("everything")
    data = base / "data"
    (data / "pgdata").mkdir(parents=True)
    (data / "pgdata" / "PG_VERSION").write_text("15\n")
    (base / "stack").mkdir()
    (base / "stack" / "letters.txt").touch()
    taken = free_port()
    inventory = base / "group.yml"
    inventory.write_text(
        yaml.safe_dump(
            {
                "stack_dir": str(base / "stack"),
                "stack_project": "preflight-test",
                "stack_image_source": "registri",
                "stack_server_names": ["https://example.com/"],
                "nginx_http_port": taken,
                "nginx_https_port": "https",
                "rabbitmq_management_port": free_port(),
                "nginx_htps_port": 8443,
                "stak_dir": "/srv",
                "api_cpus": "{{ no_such_thing }}",
                "postgres_data_dir": str(data),
                "preflight_disk_stack_mb": 10**9,
                "redis_old_name": 1,
                "_preflight_renamed": {"redis_old_name": "redis_data_dir"},
            }
        )
    )
    with listening(taken), contextlib.ExitStack() as held:
        # The default that stands in for the wrong port is taken as well, and nobody asked for it.
        with contextlib.suppress(OSError):
            held.enter_context(listening(443))
        yield preflight({}, "-e", f"@{inventory}"), taken


class TestEverything:
    """Bad input: all of it in one message, and nothing changed."""

    def test_names_the_process_that_holds_a_port(self, everything: tuple[Run, int]) -> None:
        run, port = everything
        text = report(run)
        assert f"Port {port} (nginx_http_port) on 127.0.0.1 is in use by" in text
        assert f"PID {os.getpid()}" in text

    @pytest.mark.parametrize(
        ("cause", "remedy"),
        [
            ("nginx_htps_port (", "Did you mean nginx_https_port?"),
            ("stak_dir (", "Did you mean stack_dir?"),
            ("redis_old_name (", "Call it redis_data_dir."),
            ("nginx_https_port (", "Set nginx_https_port to a value of type int"),
            ("stack_image_source (", "one of auto, registry, distro, archive"),
            ("api_cpus (", "Define it"),
            ("what is no host name: https://example.com/", "names alone"),
            ("holds data of PostgreSQL 15; the stack runs PostgreSQL 17", "pg_dumpall"),
            ("are free on the file system of stack_dir", "Free some space"),
            ("holds something else (letters.txt)", "set another stack_dir"),
        ],
    )
    def test_names_cause_and_remedy(
        self, everything: tuple[Run, int], cause: str, remedy: str
    ) -> None:
        blocks = report(everything[0]).split("\n\n")
        assert any(cause in block and remedy in block for block in blocks), cause

    def test_says_where_a_variable_was_set(self, everything: tuple[Run, int]) -> None:
        assert re.search(r"nginx_htps_port \(\S+group\.yml:\d+\)", report(everything[0]))

    def test_counts_and_numbers_them(self, everything: tuple[Run, int]) -> None:
        text = report(everything[0])
        numbers = [int(number) for number, _ in PROBLEM.findall(text)]
        assert numbers == list(range(1, 12)), text
        assert "Preflight found 11 problems. Nothing was changed." in text


def test_nothing_wrong(good: dict[str, Any]) -> None:
    """Facts that others need, for one module execution, and nothing touched."""
    run = preflight(good).succeeded()
    assert run.executions == 1
    assert run.changed == 0
    assert not Path(good["stack_dir"]).exists()
    facts = shown_facts(run)
    assert facts["distribution"] in {"debian", "ubuntu"}
    assert facts["service_manager"] in {"systemd", "none"}
    assert facts["docker"]["state"] in {"running", "stopped", "absent"}


def test_a_pulled_application_needs_room_only_once(good: dict[str, Any]) -> None:
    """Bad input: too little disk. What is there shows that the images were made before."""
    good.update(preflight_disk_images_mb=10**9, stack_image_source="registry")
    repository = f"preflight-test.example:5000/{uuid.uuid4().hex}/shop"
    good["api_image"] = f"{repository}:2@sha256:{64 * '0'}"
    assert "are free on the file system of" in report(preflight(good))
    subprocess.run(
        ["docker", "import", "-", f"{repository}:1"],
        input=b"\0" * 1024,
        check=True,
        capture_output=True,
    )
    try:
        preflight(good).succeeded()
    finally:
        subprocess.run(["docker", "image", "rm", f"{repository}:1"], check=True)


def test_own_variables_can_be_allowed(good: dict[str, Any]) -> None:
    good.update(redis_of_ours="x", preflight_allowed_variables=["redis_of_ours"])
    preflight(good).succeeded()


def test_a_wrong_secret_is_not_shown(good: dict[str, Any]) -> None:
    """FS-8."""
    text = report(preflight({**good, "secrets_values": "hunter2-in-the-wrong-place"}))
    assert "secrets_values" in text
    assert "hunter2" not in text


RULES = [
    (
        {
            "stack_services": ["postgres", "postgres", "prometeus", "api", "nginx"],
            "stack_server_names": [],
            "stack_project": "Big Project",
            "nginx_http_port": 70000,
            "nginx_https_port": 70000,
            "postgres_data_dir": "data",
            "tls_mode": "provided",
            "stack_image_source": "archive",
            "images_archive": "/nowhere.tar",
            "preflight_distributions": ["plan9-4"],
            "preflight_memory_mb": 10**9,
        },
        [
            "stack_services names prometeus, which no role provides",
            "names a service twice",
            "has api but not redis",
            "stack_server_names is empty",
            "which Compose refuses",
            "would publish the same port",
            "not between 1 and 65535",
            "postgres_data_dir data",
            "the certificate cannot be used:  (no file named)",
            "images_archive ('/nowhere.tar') is no file",
            "which is not supported",
            "MiB of memory",
        ],
    ),
    (
        {
            "stack_server_names": ["good.example.com", "a b"],
            "stack_dir": "relative",
            "nginx_publish_address": "192.0.2.1",
        },
        [
            "is no host name: a b",
            "stack_dir is 'relative'",
            "192.0.2.1 is not an address of the host",
        ],
    ),
    (
        {
            "stack_server_names": ["*.example.com", "example.com"],
            "stack_profiles": ["dev", "monitorin"],
            "stack_frontend_subnet": "everywhere",
            "stack_backend_subnet": "172.30.1.5/24",
            "stack_monitoring_subnet": "fd00::/64",
            "postgres_image": "example.com/timescaledb:2.30.0-pg16@sha256:" + 64 * "0",
            "postgres_max_connections": 100,
            "postgres_memory_mb": 8,
            "redis_data_dir": "redis",
            "redis_cache_memory_mb": 1,
            "api_scale": 65,
            "api_workers": 70,
            "api_source_dir": "src",
            "nginx_cpus": -1,
            "redis_cpus": 0,
        },
        [
            "stack_server_names begins with the wildcard *.example.com",
            "stack_profiles names monitorin, which no service has",
            "stack_frontend_subnet: 'everywhere' does not appear to be",
            "stack_backend_subnet: 172.30.1.5/24 has host bits set",
            "stack_monitoring_subnet: fd00::/64 is not IPv4",
            "postgres_image carries PostgreSQL 16; this stack runs PostgreSQL 17",
            "(two slots of api_scale 65 with api_workers 70 each, 6 for usage and",
            "0 for birthdays)",
            "A path is relative: redis_data_dir redis, api_source_dir src",
            "Too little memory to run with: postgres_memory_mb 8, redis_cache_memory_mb 1.",
            "May be 1 to 64: api_scale 65, api_workers 70.",
            "redis_cpus 0.0, nginx_cpus -1.0",
        ],
    ),
    (
        {
            "stack_profiles": ["monitoring"],
            "alertmanager_slack_channel": "#alerts",
            "alertmanager_mail_username": "me",
            "prometheus_retention_hours": 0,
        },
        [
            "secrets_values lacks what it signs in with",
            "alertmanager_mail_to names nobody",
            "prometheus_retention_hours is 0",
        ],
    ),
    (
        {
            "stack_profiles": ["logging"],
            "loki_retention_hours": 23,
            "loki_memory_mb": 64,
            "grafana_data_dir": "grafana",
        },
        [
            "loki_retention_hours is 23 and loki_ingestion_rate_mb 4",
            "Too little memory to run with: loki_memory_mb 64.",
            "A path is relative: grafana_data_dir grafana",
        ],
    ),
    (
        {"stack_profiles": ["logging"], "stack_services": ["postgres", "redis", "alloy"]},
        ["stack_services has alloy but not loki"],
    ),
    (
        {"stack_services": ["postgres", "redis", "usage"]},
        ["stack_services has usage but not api"],
    ),
    (
        {
            "firewall_ssh_ports": [22],
            "firewall_tcp_ports": [70000],
            "firewall_udp_ports": [0],
            "firewall_inside_interfaces": ["wg0", 'x" accept'],
            "firewall_trial_seconds": 1,
        },
        [
            "holds what is no port: 70000, 0.",
            "holds what is no interface's name: x\" accept.",
            "Out of range: firewall_trial_seconds 1 (5 to 600).",
        ],
    ),
    (
        {"usage_late_days": 90},
        ["usage_late_days is 90, and usage is kept for 90 days as events, 90 by minute"],
    ),
    (
        {"stack_services": ["redis", "api", "usage"]},
        ["stack_services has api and usage but not postgres"],
    ),
    (
        {
            "stack_services": ["postgres", "redis", "api", "birthdays"],
            "birthdays_mailbox": True,
            "birthdays_email_url": "https://user:secret@email.example.com/messages",
            "birthdays_queue": "messages",
            "birthdays_timeout_seconds": 60,
            "birthdays_ahead_hours": 12,
        },
        [
            "stack_services has birthdays but not rabbitmq",
            "birthdays_mailbox asks for a stand-in instead",
            "is no HTTP address, or one with a user or a query",
            "birthdays_queue is 'messages'",
            "Out of range: birthdays_ahead_hours 12 (30 to 240), birthdays_timeout_seconds 60.0 (1",
        ],
    ),
    (
        {
            "stack_services": ["redis", "backup"],
            "backup_hour": 24,
            "postgres_data_dir": "/srv/database",
            "backup_data_dir": "/srv/database/backups",
            "backup_drill_dir": "/srv/database",
        },
        [
            "stack_services has backup but not postgres",
            "Out of range: backup_hour 24 (0 to 23)",
            "In postgres_data_dir lies /srv/database/backups, /srv/database: what takes",
        ],
    ),
    (
        {
            "stack_services": ["nginx"],
            "tls_mode": "acme",
            "acme_directory": "http://acme.example.com/directory",
            "acme_dns_provider": "cloudflare",
            "acme_dns_settings": {"CF_API_KEY": "open"},
            "acme_ca_file": "/nowhere.pem",
            "stack_server_names": ["example.com", "*.example.com"],
        },
        [
            "of acme, which asks for the certificate, and nginx, which serves it, stack_services",
            "acme_email is ''",
            "acme_directory is 'http://acme.example.com/directory', which is no https address",
            "*.example.com is a wildcard, which acme_challenge http-01 cannot prove",
            "acme_challenge is http-01 and acme_dns_provider 'cloudflare'",
            "acme_dns_settings has CF_API_KEY, and is no place for secrets",
            "acme_ca_file is '/nowhere.pem', which is no PEM file",
        ],
    ),
    (
        {
            "tls_mode": "acme",
            "acme_email": "operator@example.com",
            "stack_server_names": ["example.com", "localhost", "10.0.0.1", "db.internal"],
        },
        [
            "gives no certificate for localhost, 10.0.0.1, db.internal",
            "Let's Encrypt asks port 80 of each name, and nginx is published on port",
        ],
    ),
    (
        {
            "tls_mode": "acme",
            "acme_email": "operator@example.com",
            "acme_challenge": "dns-01",
            "acme_dns_provider": "cloudflare",
            "acme_dns_secrets": ["CF_DNS_API_TOKEN"],
            "stack_server_names": ["example.com"],
        },
        ["acme_dns_secrets asks for acme_cf_dns_api_token; secrets_values lacks it"],
    ),
    (
        {
            "stack_services": ["postgres", "offsite"],
            "offsite_repository": "sftp:copies@nas.example.com:/srv/copies",
            "offsite_minutes": 0,
        },
        [
            "stack_services has no backup, whose backups it copies",
            "needs what is not there: offsite_ssh_key, offsite_known_hosts.",
            "Out of range: offsite_minutes 0 (1 to 1440)",
        ],
    ),
    (
        {
            "stack_services": ["postgres", "backup"],
            "backup_data_dir": "/srv/backups",
            "offsite_repository": "/srv/backups/copy",
        },
        [
            "stack_services has no offsite: nothing would be copied",
            "offsite_repository lies in /srv/backups: what takes the backups",
        ],
    ),
    (
        {"offsite_repository": "rest:https://somebody:secret@nas.example.com/"},
        ["offsite_repository is 'rest:https://...@nas.example.com/', which is none"],
    ),
    (
        {
            "rotate_secret": "of_nobody, redis_cache_password, postgres_app_password, ",
            "secrets_values": {"postgres_app_password": "of-my-own"},
        },
        [
            "of_nobody is not a secret of any active service",
            "postgres_app_password has its value in secrets_values",
            "no secret was named to be rotated",
            "redis_queue_password (the application signs in to redis-queue with it)",
        ],
    ),
    (
        {"stack_image_source": "registry", "postgres_version": 18},
        ["postgres_version 18 cannot be had from a registry"],
    ),
]


@pytest.mark.parametrize(
    ("variables", "causes"),
    RULES,
    ids=[
        *("many", "others", "settings", "monitoring", "logging", "alloy", "usage", "firewall"),
        *("late usage", "no database", "birthdays", "backup", "acme", "names and ports"),
        *("no token", "offsite", "no offsite", "offsite account", "rotation", "version"),
    ],
)
def test_rules(good: dict[str, Any], variables: dict[str, Any], causes: list[str]) -> None:
    """Bad input that no single variable's type can tell."""
    text = report(preflight({**good, **variables}))
    assert [cause for cause in causes if cause not in text] == [], text


def test_images_are_made_for_a_copy(good: dict[str, Any]) -> None:
    """FS-7: `make build` and `make bundle` deploy no service, and need the copy's image, too."""
    variables = {"stack_services": [], "offsite_repository": "/srv/copies/stack"}
    preflight({**good, **variables}).succeeded()


def test_a_certificate_that_does_not_fit_is_refused_before_anything_changes(
    good: dict[str, Any], tmp_path: Path
) -> None:
    """A key of another certificate, and a name that it does not cover."""
    for name in ("one", "other"):
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
                *("ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=one.example"),
                *("-addext", "subjectAltName=DNS:one.example"),
                *("-keyout", str(tmp_path / f"{name}.key"), "-out", str(tmp_path / f"{name}.pem")),
            ],
            check=True,
            capture_output=True,
        )
    good.update(
        tls_mode="provided",
        tls_certificate_file=str(tmp_path / "one.pem"),
        tls_private_key_file=str(tmp_path / "one.key"),
        stack_server_names=["one.example"],
    )
    preflight(good).succeeded()
    good["tls_private_key_file"] = str(tmp_path / "other.key")
    good["stack_server_names"] = ["two.example"]
    text = report(preflight(good))
    assert "the certificate cannot be used" in text
    assert "two.example" in text


@pytest.mark.parametrize(
    "variables",
    [
        {
            "api_scale": "2",
            "api_workers": "4",
            "postgres_max_connections": "32",
            "stack_server_names": ["example.com", "*.example.com"],
            "stack_backend_subnet": "172.30.1.0/24",
            "stack_profiles": ["monitoring", "logging"],
        },
        # Pulled from nowhere, so what its tag says is of no account.
        {"stack_image_source": "distro", "postgres_image": "example.com/timescaledb:2-pg16"},
        # Let's Encrypt by a record in the zone, from a host that publishes nothing.
        {
            "tls_mode": "acme",
            "acme_email": "operator@example.com",
            "acme_challenge": "dns-01",
            "acme_dns_provider": "cloudflare",
            "acme_dns_settings": {"CLOUDFLARE_POLLING_INTERVAL": "5"},
            "acme_dns_secrets": ["CF_DNS_API_TOKEN"],
            "secrets_values": {"acme_cf_dns_api_token": "not-a-secret"},
            "stack_server_names": ["example.com", "*.example.com"],
        },
        # An authority of one's own, which asks another port.
        {
            "tls_mode": "acme",
            "acme_email": "operator@example.com",
            "acme_directory": "https://ca.internal/acme/directory",
            "stack_server_names": ["db.internal"],
        },
    ],
    ids=["bounds", "unused image", "a wildcard", "an authority of one's own"],
)
def test_what_the_rules_let_pass(good: dict[str, Any], variables: dict[str, Any]) -> None:
    """The other side of each bound."""
    preflight({**good, **variables}).succeeded()


def test_every_rule_has_a_case() -> None:
    table = yaml.safe_load((ROOT / "roles" / "preflight" / "vars" / "main.yml").read_text())
    assert len(table["_preflight_rules"]) == 53


def test_python_on_the_host_is_what_the_modules_are_checked_for() -> None:
    """Bad input: an older one would fail halfway through."""
    table = yaml.safe_load((ROOT / "roles" / "preflight" / "vars" / "main.yml").read_text())
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert table["_preflight_target"]["python_min"] == checked["python_version"]
