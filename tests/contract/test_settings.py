"""What settings other than the defaults do to what is rendered."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conftest import Rendered


def pids(service: dict[str, Any]) -> int:
    return int(service["deploy"]["resources"]["limits"]["pids"])


def test_subnets_reach_the_networks(rendered: Rendered, changed: Rendered) -> None:
    """UT-7: those that are set, and no others."""
    assert {
        name: network["ipam"]["config"][0]["subnet"] for name, network in changed.networks.items()
    } == {
        "frontend": "172.30.1.0/24",
        "backend": "172.30.2.0/24",
        "monitoring": "172.30.3.0/24",
    }
    assert not [name for name, network in rendered.networks.items() if "ipam" in network]


def test_stapling_follows_the_certificate(rendered: Rendered, changed: Rendered) -> None:
    """CS-9: on where the certificate names a responder, else nginx would warn at every reload."""
    assert "ssl_stapling" not in rendered.file("nginx", "config/nginx.conf")
    for line in ("ssl_stapling on;", "ssl_stapling_verify on;", "ssl_trusted_certificate "):
        assert line in changed.file("nginx", "config/nginx.conf")


def test_a_certificate_that_is_renewed_is_read_at_each_handshake(
    rendered: Rendered, changed: Rendered
) -> None:
    """BM-11, FS-8: without a reload; what proves whose the zone is, is a file."""
    read = "ssl_certificate /etc/tls/$tls_pair/fullchain.pem;"
    assert read in rendered.file("nginx", "config/nginx.conf")
    assert "ssl_certificate /etc/tls/fullchain.pem;" in changed.file("nginx", "config/nginx.conf")
    assert "acme" not in changed.services
    keeper = rendered.services["acme"]
    assert "environment" not in keeper
    assert keeper["secrets"] == ["acme_cf_dns_api_token"]
    request = json.loads(rendered.file("acme", "config/request.json"))
    assert request["secrets"] == {"CF_DNS_API_TOKEN": "acme_cf_dns_api_token"}
    assert "/run/acme:/run/acme:ro" in " ".join(rendered.services["nginx"]["volumes"])


def test_nginx_has_as_many_workers_as_cores_of_its_own(
    rendered: Rendered, changed: Rendered
) -> None:
    """FS-6: `auto` would count the host's, and on a large one exceed the limit of processes."""
    for item, workers in ((rendered, 1), (changed, 3)):
        text = item.file("nginx", "config/nginx.conf")
        assert re.search(rf"^worker_processes {workers};$", text, re.MULTILINE)
        # While it reloads, old workers and new ones run side by side.
        assert pids(item.services["nginx"]) >= 2 * workers + 16


def test_postgresql_may_fork_for_every_connection(rendered: Rendered, changed: Rendered) -> None:
    """BM-5, FS-6: one process for each, and its own beside them."""
    for item in (rendered, changed):
        text = item.file("postgres", "boot/server.conf")
        found = re.search(r"^max_connections = (\d+)$", text, re.MULTILINE)
        assert found
        assert pids(item.services["postgres"]) >= int(found[1]) + 40


def test_a_wildcard_covers_the_names_below_it(changed: Rendered) -> None:
    """CS-9: a redirect keeps a name that the wildcard covers."""
    found = re.search(
        r"map \$host \$redirect_host \{(.*?)\}",
        changed.file("nginx", "config/nginx.conf"),
        re.DOTALL,
    )
    assert found
    lines = [line.strip() for line in found[1].strip().splitlines()]
    assert "hostnames;" in lines
    assert "*.example.com $host;" in lines
    assert "default example.com;" in lines
