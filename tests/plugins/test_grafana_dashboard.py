"""The filter that makes dashboards: what it adds, and what it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from plugins.filter import grafana_dashboard as plugin

if TYPE_CHECKING:
    from .conftest import Project

RATE = "rate(redis_commands_processed_total{$target}[$__rate_interval])"


def panel(**keys: Any) -> dict[str, Any]:
    return {"description": "What it shows.", "unit": "ops", "queries": {"<instance>": RATE}} | keys


def description(panels: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    return {
        "title": "Redis",
        "uid": "redis",
        "description": "Two servers.",
        "targets": "redis_up",
        "rows": {"Work": panels or {"Commands": panel()}},
    } | keys


def make(given: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(plugin.grafana_dashboard(given))
    return made


def made_panel(**keys: Any) -> dict[str, Any]:
    """The panel that these keys make."""
    first: dict[str, Any] = make(description({"Commands": panel(**keys)}))["panels"][1]
    return first


def refusal(given: Any) -> str:
    with pytest.raises(AnsibleFilterError) as caught:
        plugin.grafana_dashboard(given)
    return str(caught.value)


def test_the_example_in_the_documentation_works(project: Project) -> None:
    (task,) = yaml.safe_load(plugin.EXAMPLES)
    task["ansible.builtin.copy"]["dest"] = str(project.root / "redis.json")
    outcome = project.tasks(task)
    assert outcome.returncode == 0, outcome.output
    assert json.loads((project.root / "redis.json").read_text())["title"] == "Redis"


def test_text_and_mapping_make_the_same_and_always_do() -> None:
    given = description()
    text = plugin.grafana_dashboard(yaml.safe_dump(given, sort_keys=False))
    assert text == plugin.grafana_dashboard(given)
    assert text.endswith("}\n")


def test_through_ansible(project: Project) -> None:
    """CS-11: in a template, and what is between braces for Grafana stays there."""
    source, dest = project.root / "redis.json.j2", project.root / "redis.json"
    body = yaml.safe_dump(description(), sort_keys=False)
    source.write_text(f"{{% filter grafana_dashboard %}}\n{body}{{% endfilter %}}\n")
    arguments = {"src": str(source), "dest": str(dest), "mode": "0644"}
    outcome = project.tasks({"ansible.builtin.template": arguments})
    assert outcome.returncode == 0, outcome.output
    assert dest.read_text() == plugin.grafana_dashboard(description())
    assert '"{{instance}}"' in dest.read_text()


def test_a_mistake_is_found_by_ansible_and_named(project: Project) -> None:
    """The message has the dashboard, the panel, the key and the file."""
    source = project.root / "redis.json.j2"
    body = yaml.safe_dump(description({"Commands": panel(units="ops")}))
    source.write_text(f"{{% filter grafana_dashboard %}}\n{body}{{% endfilter %}}\n")
    arguments = {"src": str(source), "dest": str(project.root / "out.json"), "mode": "0644"}
    outcome = project.tasks({"ansible.builtin.template": arguments})
    assert outcome.returncode != 0
    assert "dashboard 'Redis', row 'Work', panel 'Commands' has the unknown key 'units'" in (
        outcome.output
    )
    assert not (project.root / "out.json").exists()


def test_every_dashboard_has_data_source_job_and_instance() -> None:
    variables = make(description())["templating"]["list"]
    assert [item["name"] for item in variables] == ["datasource", "job", "instance"]
    assert variables[1]["query"] == "label_values(redis_up, job)"
    assert variables[2]["query"] == 'label_values(redis_up{job=~"$job"}, instance)'


def test_targets_with_matchers_keep_them() -> None:
    variables = make(description(targets='up{job=~"a|b"}'))["templating"]["list"]
    assert variables[2]["query"] == 'label_values(up{job=~"$job", job=~"a|b"}, instance)'


def test_variables_of_its_own() -> None:
    own = {"slot": "http_requests_total{$target}", "level": ["info", "error"], "search": None}
    slot, level, search = make(description(variables=own))["templating"]["list"][3:]
    assert slot["query"] == (
        'label_values(http_requests_total{job=~"$job", instance=~"$instance"}, slot)'
    )
    assert (level["type"], level["query"]) == ("custom", "info,error")
    assert search["type"] == "textbox"


def test_matchers_and_target_are_written_out() -> None:
    queries = {"<slot>": "sum by (slot) (up{$real})"}
    given = description({"Up": panel(queries=queries)}, matchers={"real": '$target, path!~"/x.*"'})
    target = make(given)["panels"][1]["targets"][0]
    assert target["expr"] == (
        'sum by (slot) (up{job=~"$job", instance=~"$instance", path!~"/x.*"})'
    )
    assert target["legendFormat"] == "{{slot}}"


def test_releases_are_marked() -> None:
    """CS-11: with the metric that says what serves."""
    (annotation,) = make(description())["annotations"]["list"]
    assert "compose_stack_release_record offset" in annotation["expr"]
    assert annotation["expr"] == annotation["target"]["expr"]


def test_loki() -> None:
    queries = {"lines": '{service=~"$service"}'}
    logs = {"kind": "logs", "description": "Lines.", "queries": queries}
    given = description({"Lines": logs}, source="loki", variables={"service": '{job="x"}'})
    del given["targets"]
    made = make(given)
    chooser, service = made["templating"]["list"]
    assert chooser["query"] == "loki"
    assert service["query"]["stream"] == '{job="x"}'
    assert made["annotations"]["list"] == []
    assert made["panels"][1]["targets"][0]["expr"] == '{service=~"$service"}'


@pytest.mark.parametrize(
    ("number", "widths"),
    [(1, [24]), (2, [12, 12]), (3, [8, 8, 8]), (4, [12] * 4), (5, [8, 8, 8, 12, 12])],
)
def test_lines_are_full(number: int, widths: list[int]) -> None:
    made = make(description({f"Panel {index}": panel() for index in range(number)}))
    assert [item["gridPos"]["w"] for item in made["panels"][1:]] == widths


def test_panels_of_a_line_are_equally_high_and_the_next_is_below() -> None:
    kinds = [panel(kind="stat", width=12), panel(width=12), panel(width=24)]
    made = make(description({f"Panel {index}": item for index, item in enumerate(kinds)}))
    places = [item["gridPos"] for item in made["panels"]]
    assert [(place["y"], place["h"]) for place in places] == [(0, 1), (1, 8), (1, 8), (9, 8)]


def test_thresholds_are_in_order_from_the_base() -> None:
    thresholds = {"base": "red", 0.9: "green", 0.5: "yellow"}
    steps = made_panel(thresholds=thresholds)["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [(step["color"], step["value"]) for step in steps] == [
        ("red", None),
        ("yellow", 0.5),
        ("green", 0.9),
    ]


def test_values_become_text() -> None:
    mappings = made_panel(values={0: "no", 1: "yes"})["fieldConfig"]["defaults"]["mappings"]
    assert mappings[0]["options"] == {"0": {"text": "no"}}


def test_columns_of_a_table_have_names_and_units_of_their_own() -> None:
    queries = {
        "age": {"expr": "max by (name) (age{$target})", "unit": "s"},
        "size": "max by (name) (size{$target})",
    }
    made = made_panel(kind="table", unit="bytes", queries=queries, thresholds={1: "red"})
    organize = made["transformations"][1]["options"]
    assert organize["renameByName"] == {"Value #A": "age", "Value #B": "size"}
    age, size = made["fieldConfig"]["overrides"]
    assert age["matcher"] == {"id": "byName", "options": "age"}
    assert {"id": "unit", "value": "s"} in age["properties"]
    assert [item["id"] for item in size["properties"]] == ["custom.cellOptions"]
    assert all(target["instant"] and target["format"] == "table" for target in made["targets"])


def test_one_series_with_a_unit_of_its_own() -> None:
    queries = {"a": "a{$target}", "b": {"expr": "b{$target}", "unit": "s"}}
    (override,) = made_panel(queries=queries)["fieldConfig"]["overrides"]
    assert override["matcher"] == {"id": "byFrameRefID", "options": "B"}


@pytest.mark.parametrize(
    "expr",
    [
        'sum by (job, le) (x{$target, a="{b[1m]}"}) / on (job) group_left (d) y{$target}',
        "x{$target} offset 5m unless time() > bool 1e3",
        "increase(x_total{$target}[$__range])",
        "predict_linear(x{$target}[6h], 3600) or vector(0)",
        'count(ALERTS{alertstate="firing"}) + api:http_errors:ratio_rate5m',
        "sum without (cpu) (max_over_time(x{$target}[1h:1m]))",
        "histogram_quantile(.95, sum by (le) (rate(x_bucket{$target}[$__rate_interval])))",
    ],
)
def test_queries_that_are_well(expr: str) -> None:
    assert made_panel(queries={"a": expr})


@pytest.mark.parametrize(
    ("expr", "words"),
    [
        ("up", "has up without {$target}"),
        ('up{job="api"}', "has up without {$target}"),
        ("a{$target} / b", "has b without {$target}"),
        ('{__name__="up"}', "without {$target}"),
        ('a{x="$target"}', "has a without {$target}"),
        ("sum(b) by (a)", "has b without {$target}"),
        ("rate(x_total{$target}[5m])", "takes rate over [5m], not [$__rate_interval]"),
        ("rate(x_total{$target}[$__range])", "takes rate over [$__range]"),
        ("increase(x_total{$target}[1h])", "takes increase over [1h]"),
    ],
)
def test_queries_that_are_refused(expr: str, words: str) -> None:
    """A query that ignores the variables shows every instance whatever is chosen."""
    message = refusal(description({"Commands": panel(queries={"a": expr})}))
    assert words in message
    assert "dashboard 'Redis', row 'Work', panel 'Commands'" in message


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a: [", "the text is no YAML"),
        ("title: A\ntitle: B\n", "'title' is given twice"),
        ("", "is NoneType, not a mapping"),
        (["a"], "is list, not a mapping"),
        (description(colour="red"), "dashboard 'Redis' has the unknown key 'colour'"),
        (description(title=""), "lacks title"),
        (description(uid="Not A Uid"), "has uid 'Not A Uid'"),
        (description(uid="x" * 41), "has uid"),
        (description(targets=None), "has targets None"),
        (description(source="influx"), "one of prometheus, loki"),
        (description(time="yesterday"), "has time 'yesterday'"),
        (description(refresh=30), "has refresh 30"),
        (description(tags="a"), "a list of texts"),
        (description(links={"a": 1}), "a mapping to text"),
        (description(variables={"slot": 3}), "has the variable 'slot'"),
        (description(rows={}), "lacks rows"),
        (description(rows={"Work": {}}), "row 'Work' holds no panels"),
        (description(rows={"Work": [panel()]}), "row 'Work' holds no panels"),
    ],
)
def test_dashboards_that_are_refused(given: Any, words: str) -> None:
    assert words in refusal(given)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"unit": None}, "has unit None"),
        ({"unit": "byte"}, "has unit 'byte', which should be one of none, short"),
        ({"description": " "}, "lacks description"),
        ({"queries": {}}, "lacks queries"),
        ({"queries": {"a": 1}}, "has expr 1, which should be text"),
        ({"queries": {"a": {"expr": "a{$target}", "color": "red"}}}, "unknown key 'color'"),
        ({"queries": {True: RATE}}, "has the legend True, which is no text: quote it"),
        ({"kind": "pie"}, "has kind 'pie'"),
        ({"values": {1: True}}, "a mapping to text"),
        ({"thresholds": {"high": "red"}}, "has the threshold high: red"),
        ({"thresholds": {1: "pink"}}, "has the threshold 1: pink"),
        ({"width": 25}, "has width 25"),
        ({"stack": "yes please"}, "true or false"),
        ({"max": "ten"}, "which should be a number"),
    ],
)
def test_panels_that_are_refused(keys: dict[str, Any], words: str) -> None:
    message = refusal(description({"Commands": panel(**keys)}))
    assert words in message
    assert "panel 'Commands'" in message


def test_only_logs_need_no_unit() -> None:
    without = panel()
    del without["unit"]
    assert "lacks unit" in refusal(description({"Commands": without}))
