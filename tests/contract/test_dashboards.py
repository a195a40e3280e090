"""What every dashboard owes: the rules of grafana/dashboard-linter, and those of this repository.

Where the linter itself would complain and is not meant to: recorded series and ALERTS have no job
and no instance any more.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest

from tests.dashboards import (
    dashboards,
    expand,
    other_queries,
    panels,
    queries,
    selectors,
    sources,
    targets,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = [f"{path.parts[-3]}/{path.name.removesuffix('.json.j2')}" for path in sources()]
# Those of Grafana's units (valueFormats/categories.ts) that this repository has a use for.
UNITS = {"none", "short", "percentunit", "bytes", "Bps", "s", "reqps", "ops", "cps", "iops"}


@pytest.fixture(params=NAMES)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dashboards()[request.param]


def raw_targets(dashboard: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield f"{dashboard['title']}/{panel['title']}", target


def variables(dashboard: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in dashboard["templating"]["list"]}


def source(dashboard: dict[str, Any]) -> str:
    return str(variables(dashboard)["datasource"]["query"])


def data_sources(value: Any) -> Iterator[Any]:
    """Whatever is named as a data source, anywhere."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "datasource":
                yield item
            yield from data_sources(item)
    elif isinstance(value, list):
        for item in value:
            yield from data_sources(item)


def test_there_is_one_for_each_part_of_the_stack() -> None:
    """BM-6, CS-11: API, database, system and the rest."""
    assert {
        "api/overview",
        "api/api",
        "postgres/postgres",
        "redis/redis",
        "nginx/nginx",
        "host/host",
        "host/containers",
        "prometheus/prometheus",
        "loki/logs",
    } <= set(NAMES)


@pytest.mark.parametrize(
    ("title", "unit", "parts"),
    [
        ("Request rate", "reqps", [r"^sum\(rate\(http_requests_total\{"]),
        ("Error rate", "percentunit", [r'http_requests_total\{.*status=~"5\.\."', r"/ sum\("]),
        ("Latency", "s", [rf"^histogram_quantile\({q}," for q in ("0.5", "0.95", "0.99")]),
        ("Active connections", "none", [r"^http_active_connections\{"]),
        ("Database connections", "none", [r"^db_connections_active\{"]),
        ("Requests by endpoint", "reqps", [r"sum by \(method, path\) \(rate\(http_requests_total"]),
    ],
)
def test_the_six_panels(title: str, unit: str, parts: list[str]) -> None:
    """CS-11, BM-6: request and error rate, latency, connections, requests by endpoint."""
    api = dashboards()["api/api"]
    (panel,) = [panel for panel in panels(api) if panel["title"] == title]
    assert panel["type"] == "timeseries"
    assert panel["fieldConfig"]["defaults"]["unit"] == unit
    exprs = [target["expr"] for target in panel["targets"]]
    for part in parts:
        assert any(re.search(part, expr) for expr in exprs), (part, exprs)


def test_the_data_source_is_a_variable(dashboard: dict[str, Any]) -> None:
    """CS-11: template-datasource-rule, panel-datasource-rule; none is named but by the variable."""
    chooser = variables(dashboard)["datasource"]
    assert chooser["type"] == "datasource"
    assert chooser["query"] in ("prometheus", "loki")
    assert chooser["label"] == "Data source"
    assert [item["type"] for item in variables(dashboard).values()].count("datasource") == 1
    named = list(data_sources(dashboard))
    assert named
    expected = {"type": chooser["query"], "uid": "${datasource}"}
    assert all(item == expected for item in named)
    for panel in panels(dashboard):
        assert panel["datasource"] == expected


def test_job_and_instance_are_variables(dashboard: dict[str, Any]) -> None:
    """CS-11: template-job-rule, template-instance-rule, template-label-promql-rule."""
    known = variables(dashboard)
    if source(dashboard) == "prometheus":
        for name in ("job", "instance"):
            assert known[name]["type"] == "query"
            assert known[name]["label"] == name.title()
            assert known[name]["multi"] is True
            assert known[name]["allValue"] == ".+"
            assert re.fullmatch(rf"label_values\(.+, {name}\)", known[name]["query"])
        assert '{job=~"$job"' in known["instance"]["query"]
    for item in known.values():
        if item["type"] == "query":
            assert item["refresh"] == 2, f"{item['name']}: template-on-time-change-reload-rule"


def test_every_series_is_that_of_the_chosen_targets(dashboard: dict[str, Any]) -> None:
    """CS-11: target-job-rule, target-instance-rule."""
    if source(dashboard) != "prometheus":
        return
    for where, target in raw_targets(dashboard):
        found = selectors(target["expr"])
        assert found, where
        for name, matchers in found:
            if name == "ALERTS" or ":" in name:
                continue
            assert 'job=~"$job"' in matchers, f"{where}: {name}"
            assert 'instance=~"$instance"' in matchers, f"{where}: {name}"


def test_rates_are_over_the_range_grafana_says(dashboard: dict[str, Any]) -> None:
    """CS-11: target-rate-interval-rule, target-logql-auto-rule; increase may take all of it."""
    for where, target in raw_targets(dashboard):
        for over in re.findall(r"\[([^\]]*)\]", target["expr"]):
            allowed = {"$__auto"} if source(dashboard) == "loki" else {"$__rate_interval"}
            if "increase(" in target["expr"]:
                allowed.add("$__range")
            assert over in allowed, f"{where}: [{over}]"


def test_counters_are_not_shown_as_they_are(dashboard: dict[str, Any]) -> None:
    """CS-11: target-counter-agg-rule."""
    if source(dashboard) != "prometheus":
        return
    for where, target in raw_targets(dashboard):
        for function, _ in re.findall(
            r"([\w]*)\(?\s*\b[\w:]+_total(\{[^}]*\})?(?![\w{])", target["expr"]
        ):
            assert function in ("rate", "irate", "increase"), f"{where}: {target['expr']}"


def test_panels_say_what_they_show(dashboard: dict[str, Any]) -> None:
    """CS-11: panel-title-description-rule, panel-units-rule, panel-no-targets-rule."""
    assert dashboard["title"]
    assert dashboard["description"]
    for panel in panels(dashboard):
        where = f"{dashboard['title']}/{panel['title']}"
        assert panel["title"], where
        assert panel["description"].endswith("."), where
        assert panel["targets"], where
        if panel["type"] != "logs":
            assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, where
        for override in panel["fieldConfig"]["overrides"]:
            for item in override["properties"]:
                assert item["id"] != "unit" or item["value"] in UNITS, where
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert all(legends), where
        assert len(set(legends)) == len(legends), where


def test_ids_are_unique() -> None:
    """Grafana would drop one of two dashboards or panels with the same id."""
    for key in ("uid", "title"):
        counts = Counter(item[key] for item in dashboards().values())
        assert max(counts.values()) == 1, counts
    for dashboard in dashboards().values():
        ids = Counter(panel["id"] for panel in dashboard["panels"])
        assert max(ids.values()) == 1, dashboard["title"]
        titles = Counter(panel["title"] for panel in panels(dashboard))
        assert max(titles.values()) == 1, f"{dashboard['title']}: {titles.most_common(1)}"


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    for place in places:
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        assert place["h"] > 0
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


def test_dashboards_belong_together(dashboard: dict[str, Any]) -> None:
    """CS-11: found by their tag, refreshed, not to be edited where the change would be lost."""
    assert "compose-stack" in dashboard["tags"]
    assert dashboard["editable"] is False
    assert dashboard["refresh"]
    assert dashboard["time"]["to"] == "now"
    assert dashboard["schemaVersion"] == 39
    assert dashboard["links"][0]["tags"] == ["compose-stack"]


def test_releases_are_marked(dashboard: dict[str, Any]) -> None:
    """CS-11: what changed, where it did."""
    if source(dashboard) != "prometheus":
        return
    (releases,) = dashboard["annotations"]["list"]
    assert "compose_stack_release_record" in releases["expr"]


def test_queries_are_whole(dashboard: dict[str, Any]) -> None:
    """CS-11: no variable that nothing defines, no bracket that is not closed."""
    exprs = [expr for _, expr in targets(dashboard)] + other_queries(dashboard)
    assert queries(dashboard, source(dashboard)) == [expr for _, expr in targets(dashboard)]
    for expr in exprs:
        assert "$" not in expr, expr
        bare = re.sub(r'"(?:\\.|[^"\\])*"', "", expr)
        for opening, closing in ("()", "{}", "[]"):
            assert bare.count(opening) == bare.count(closing), expr


def test_no_dashboard_lacks_a_variable() -> None:
    """An undefined one would be sent to Prometheus as it stands."""
    with pytest.raises(KeyError):
        expand("up{job=~'$nobody'}", dashboards()["api/api"])
