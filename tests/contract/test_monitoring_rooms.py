"""Grafana, Loki and Alloy as they are rendered, and what is left when their images cannot be had.

No program here judges these configurations: their own read them when their images are there. These
tests hold the form, and what the stack promises of them.
"""

from __future__ import annotations

import configparser
import json
import re
from typing import TYPE_CHECKING

import pytest
import yaml

from .conftest import ROOT, optional

if TYPE_CHECKING:
    from .conftest import Rendered

ROOMS = ["grafana", "loki", "alloy"]


def ini(rendered: Rendered) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.read_string(rendered.file("grafana", "boot/grafana.ini"))
    return parser


def sources(rendered: Rendered) -> list[str]:
    text = rendered.file("grafana", "boot/provisioning/datasources/stack.yml")
    return [item["name"] for item in yaml.safe_load(text)["datasources"]]


def test_grafana_asks_for_a_password(rendered: Rendered, changed: Rendered) -> None:
    """CS-11, FS-8: from a file; nobody signs up, and nobody looks without unless that is asked."""
    settings = ini(rendered)
    secret = {"admin_password": "grafana_admin_password", "secret_key": "grafana_secret_key"}
    for key, name in secret.items():
        assert settings["security"][key] == f"$__file{{/run/secrets/{name}}}"
        assert name in rendered.services["grafana"]["secrets"]
    assert settings["auth.anonymous"]["enabled"] == "false"
    assert settings["users"]["allow_sign_up"] == "false"
    assert settings["auth.basic"]["enabled"] == "false"
    assert settings["security"]["cookie_secure"] == "true"
    assert ini(changed)["auth.anonymous"]["enabled"] == "true"
    assert ini(changed)["auth.anonymous"]["org_role"] == "Viewer"


def test_anonymous_viewing_on_a_laptop_only() -> None:
    """CS-11."""
    assert optional(ROOT / "roles" / "grafana" / "defaults" / "main.yml")["grafana_anonymous"] is (
        False
    )
    allowing = {
        path.parents[1].name
        for path in (ROOT / "inventories").glob("*/group_vars/*.yml")
        if optional(path).get("grafana_anonymous", False)
    }
    assert allowing == {"local"}


def test_grafana_talks_to_nobody_outside(rendered: Rendered) -> None:
    """CS-11: no usage statistics, no look for updates, no plugins, no pictures, no scripts."""
    settings = ini(rendered)
    for section, keys in {
        "analytics": ["reporting_enabled", "check_for_updates", "check_for_plugin_updates"],
        "snapshots": ["external_enabled"],
        "news": ["news_feed_enabled"],
        "plugins": ["plugin_admin_enabled"],
    }.items():
        for key in keys:
            assert settings[section][key] == "false", key
    assert settings["plugins"]["preinstall_disabled"] == "true"
    assert settings["security"]["disable_gravatar"] == "true"
    policy = settings["security"]["content_security_policy_template"]
    assert "grafana.com" not in policy
    assert "frame-ancestors 'none'" in policy


def test_grafana_knows_where_it_is(rendered: Rendered, changed: Rendered) -> None:
    """CS-11: below /grafana/ of the stack's own address, port included."""
    assert ini(changed)["server"]["root_url"] == "https://example.com:8443/grafana/"
    assert ini(rendered)["server"]["serve_from_sub_path"] == "true"


def test_grafana_is_given_sources_and_dashboards(rendered: Rendered) -> None:
    """CS-11, BM-6: those of the rooms that are active, as code."""
    assert sources(rendered) == ["Prometheus", "Alertmanager", "Loki"]
    provider = yaml.safe_load(rendered.file("grafana", "boot/provisioning/dashboards/stack.yml"))
    place = provider["providers"][0]["options"]["path"]
    assert place == "/etc/compose-stack/current/config/dashboards"
    directory = rendered.directory / "grafana" / "current" / "config" / "dashboards"
    found = {
        f"{path.parent.name}/{path.name.removesuffix('.json')}" for path in directory.glob("*/*")
    }
    written = {
        f"{path.parts[-3]}/{path.name.removesuffix('.json.j2')}"
        for path in ROOT.glob("roles/*/dashboards/*.j2")
    }
    assert found == written
    for path in directory.glob("*/*"):
        assert json.loads(path.read_text())["uid"], path
    home = ini(rendered)["dashboards"]["default_home_dashboard_path"]
    assert home.removeprefix(f"{place}/").removesuffix(".json") in found


def test_nginx_leads_to_grafana(rendered: Rendered) -> None:
    """CS-11: by a name that is resolved when it is needed; its metrics stay inside."""
    text = rendered.file("nginx", "config/rooms/grafana/grafana.conf")
    assert "resolver 127.0.0.11" in text
    assert re.search(r"set \$grafana http://grafana:3000;", text)
    assert "proxy_pass $grafana;" in text
    assert re.search(r"location = /grafana/metrics \{\s+return 404;", text)
    assert "config/rooms/grafana/*.conf;" in rendered.file("nginx", "config/nginx.conf")


def test_loki_forgets_in_time(rendered: Rendered, changed: Rendered) -> None:
    """UT-9: by age, as the compactor does; there is no ceiling, so what comes is limited."""
    settings = yaml.safe_load(rendered.file("loki", "boot/loki.yml"))
    assert settings["limits_config"]["retention_period"] == "168h"
    assert settings["compactor"]["retention_enabled"] is True
    assert settings["compactor"]["delete_request_store"] == "filesystem"
    assert settings["limits_config"]["ingestion_rate_mb"] == 4
    assert settings["analytics"]["reporting_enabled"] is False
    for name in ("chunks_directory", "rules_directory"):
        assert settings["common"]["storage"]["filesystem"][name].startswith("/loki/")
    (schema,) = settings["schema_config"]["configs"]
    assert (schema["store"], schema["schema"]) == ("tsdb", "v13")
    other = yaml.safe_load(changed.file("loki", "boot/loki.yml"))
    assert other["limits_config"]["retention_period"] == "24h"


def test_alloy_reads_files_and_only_ours(rendered: Rendered) -> None:
    """UT-9: no engine; few labels; another project's lines are dropped."""
    text = rendered.file("alloy", "config/config.alloy")
    assert "docker" not in re.sub(r"com\.docker\.compose", "", text)
    assert 'selector            = "{project!=\\"compose-stack\\"}"' in text
    assert 'values = ["service", "container", "stream"]' in text
    assert '"{{ .service }}-{{ .number }}"' in text
    assert text.count("{") == text.count("}")
    volumes = rendered.services["alloy"]["volumes"]
    assert "/var/lib/docker/containers:/var/log/containers:ro" in volumes


def test_the_logs_dashboard_asks_for_labels_that_alloy_sets(rendered: Rendered) -> None:
    """UT-9, CS-11: `detected_level` is Loki's own."""
    text = rendered.file("grafana", "config/dashboards/loki/logs.json")
    asked = set(re.findall(r"(\w+)=~", json.dumps(json.loads(text)).replace("\\", "")))
    assert asked == {"service", "container", "detected_level"}


def test_prometheus_measures_them(rendered: Rendered) -> None:
    """CS-10: each under a job of its own name."""
    for room in ROOMS:
        (job,) = yaml.safe_load(rendered.file("prometheus", f"config/rooms/{room}/scrape.yml"))[
            "scrape_configs"
        ]
        assert job["job_name"] == room
        assert job["static_configs"][0]["labels"] == {"instance": room}
    assert "metrics_path: /grafana/metrics" in rendered.file(
        "prometheus", "config/rooms/grafana/scrape.yml"
    )


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_without_its_image_leaves_nothing(without: Rendered, room: str) -> None:
    """CS-7: no service, no scrape job, no rule, no dashboard, no address."""
    assert room not in without.services
    assert not (without.directory / room).exists()
    for other in ("prometheus", "nginx"):
        tree = without.directory / other / "current"
        assert not (tree / "config" / "rooms" / room).exists()
    assert f"rooms/{room}/" not in without.file("prometheus", "config/prometheus.yml")
    assert f"/{room}/" not in without.file("nginx", "config/nginx.conf")
    project = yaml.safe_load(without.file("stack", "compose.yml"))
    assert f"services/{room}/current/compose.yml" not in project["include"]
    secrets = json.loads(without.file("stack", "secrets.json"))["secrets"]
    assert not [name for name in secrets if name.startswith(room)]


def test_the_rest_of_monitoring_stays_without_grafana(
    rendered: Rendered, without: Rendered
) -> None:
    """CS-7: in the order it had, else each run would render something else."""
    assert {"prometheus", "alertmanager", "node-exporter"} <= set(without.services)
    whole = yaml.safe_load(rendered.file("stack", "compose.yml"))["include"]
    rest = yaml.safe_load(without.file("stack", "compose.yml"))["include"]
    assert rest == [path for path in whole if path.split("/")[1] not in ROOMS]
