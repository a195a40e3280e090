"""A Grafana dashboard from a few lines of YAML."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import yaml
from ansible.errors import AnsibleFilterError

if TYPE_CHECKING:
    from collections.abc import Callable

DOCUMENTATION = r"""
name: grafana_dashboard
short_description: Makes a Grafana dashboard from a short description in YAML
version_added: "1.0.0"
author: compose-stack
description:
  - Adds what every dashboard of the stack has. That is a templated data source, the variables job
    and instance, a marker at each release, links between the dashboards, ids and a layout.
  - Refuses what Grafana would take in silence, such as a misspelt key or unit, a query that
    ignores the variables, or a rate over a fixed range; the message says where it stands.
  - Writes schema version 39, which Grafana 11 and 12 read. docs/dashboards.md has the keys.
positional: _input
options:
  _input:
    description: YAML text, or the mapping that it stands for.
    type: raw
    required: true
"""

EXAMPLES = r"""
# A room's dashboard is a template with the description between {% filter grafana_dashboard %} and
# {% endfilter %}, see docs/dashboards.md.
- name: Write a dashboard
  ansible.builtin.copy:
    content: "{{ redis_dashboard | grafana_dashboard }}"
    dest: /tmp/redis.json
    mode: "0644"
  vars:
    redis_dashboard:
      title: Redis
      uid: redis
      description: Memory of each server.
      targets: redis_up
      rows:
        Memory:
          Memory used:
            description: Memory the data takes.
            unit: bytes
            queries:
              <instance>: redis_memory_used_bytes{$target}
"""

RETURN = r"""
_value:
  description: The dashboard as JSON text, the same for the same description.
  type: str
"""

TARGET = 'job=~"$job", instance=~"$instance"'
RATE = re.compile(r"\b(i?rate|increase)\(\s*[\w:]*\s*(?:{[^}]*})?\s*\[([^\]]*)\]")
SERIES = re.compile(r"(?<![\w$:.])([a-zA-Z_:][\w:]*(?![\w:]*\s*\())?\s*({[^}]*})?")
WORDS = ("", "and", "or", "unless", "bool", "offset", "inf", "nan", "group_left", "group_right")
COLOURS = ("green", "yellow", "orange", "red", "blue", "purple", "text")
UNITS = """
none short percent percentunit bool string bytes bits Bps bps s ms dtdurations dateTimeAsIso
dateTimeFromNow reqps ops cps iops pps rps wps hertz celsius
""".split()  # noqa: SIM905 - words are easier to read so
# Width and height on Grafana's grid of 24 columns; a line that is not full is stretched.
SIZES = {
    "timeseries": (8, 8),
    "stat": (4, 4),
    "gauge": (4, 5),
    "table": (12, 8),
    "heatmap": (12, 8),
    "logs": (24, 14),
}
NUMBERS = ("unit", "min", "max", "decimals")
# What the value of a key may be, besides one of several and a pattern. YAML makes a boolean of a
# bare yes, no, on or off, which is neither text nor number.
KINDS: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "true or false": lambda value: isinstance(value, bool),
    "a number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "a list of texts": lambda value: isinstance(value, list) and all(map(KINDS["text"], value)),
    "a mapping": lambda value: isinstance(value, dict),
    "a mapping to text": lambda value: (
        isinstance(value, dict) and all(map(KINDS["text"], value.values()))
    ),
}
NEEDED: Any = object()
DASHBOARD: dict[str, tuple[Any, Any]] = {
    "title": ("text", NEEDED),
    "uid": (re.compile(r"[a-z0-9][a-z0-9_-]{0,39}"), NEEDED),
    "description": ("text", NEEDED),
    "rows": ("a mapping", NEEDED),
    "source": (("prometheus", "loki"), "prometheus"),
    "targets": ("text", None),
    "tags": ("a list of texts", []),
    "variables": ("a mapping", {}),
    "matchers": ("a mapping to text", {}),
    "links": ("a mapping to text", {}),
    "time": (re.compile(r"now-\d+[mhdw]"), "now-1h"),
    "refresh": (re.compile(r"\d+[smh]"), "30s"),
}
PANEL: dict[str, tuple[Any, Any]] = {
    "description": ("text", NEEDED),
    "kind": (tuple(SIZES), "timeseries"),
    "unit": (UNITS, None),
    "queries": ("a mapping", NEEDED),
    "thresholds": ("a mapping", {}),
    "values": ("a mapping to text", {}),
    "min": ("a number", None),
    "max": ("a number", None),
    "decimals": ("a number", None),
    "stack": ("true or false", False),
    "text": (("auto", "name", "value_and_name"), "auto"),
    "width": (range(1, 25), None),
    "height": (range(2, 41), None),
    "links": ("a mapping to text", {}),
}
QUERY: dict[str, tuple[Any, Any]] = {"expr": ("text", NEEDED), "unit": (UNITS, None)}


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error: the second query of a name would win unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [str(key.value) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name!r} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def grafana_dashboard(source: Any) -> str:
    """See DOCUMENTATION."""
    if isinstance(source, str):
        try:
            source = yaml.load(source, _Loader)  # noqa: S506 - a SafeLoader
        except yaml.YAMLError as error:
            raise _error("the text", f"is no YAML: {error}") from error
    title = source.get("title") if isinstance(source, dict) else None
    where = f"dashboard {title!r}"
    given = _fields(source, DASHBOARD, where)
    loki = given["source"] == "loki"
    if not loki and not given["targets"]:
        raise _error(where, "lacks targets, the series that job and instance are found by")
    origin = {"type": given["source"], "uid": "${datasource}"}
    dashboard = {
        "title": given["title"],
        "uid": given["uid"],
        "description": given["description"].strip(),
        "tags": ["compose-stack", *given["tags"]],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": given["refresh"],
        "time": {"from": given["time"], "to": "now"},
        "timezone": "",
        "links": [
            {"title": "Dashboards", "type": "dashboards", "tags": ["compose-stack"]}
            | {"asDropdown": True, "keepTime": True},
            *({"type": "link", "title": text, "url": url} for text, url in given["links"].items()),
        ],
        "annotations": {"list": [] if loki else [_releases(origin)]},
        "templating": {"list": _variables(given, origin, where)},
        "panels": _panels(given, origin, where),
    }
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def _error(where: str, problem: str) -> AnsibleFilterError:
    return AnsibleFilterError(f"grafana_dashboard: {where} {problem}")


def _fields(given: Any, spec: dict[str, tuple[Any, Any]], where: str) -> dict[str, Any]:
    """The mapping with its defaults, if it holds what it must and nothing else."""
    if not isinstance(given, dict):
        raise _error(where, f"is {type(given).__name__}, not a mapping")
    for key in given:
        if key not in spec:
            raise _error(where, f"has the unknown key {key!r}; known are {', '.join(spec)}")
    fields = {}
    for key, (kind, default) in spec.items():
        value = given.get(key, default)
        if value is NEEDED or (default is NEEDED and (not value or not str(value).strip())):
            raise _error(where, f"lacks {key}")
        if key in given and not _fits(value, kind):
            wanted = getattr(kind, "pattern", kind)
            wanted = wanted if isinstance(wanted, str) else f"one of {', '.join(map(str, wanted))}"
            raise _error(where, f"has {key} {value!r}, which should be {wanted}")
        fields[key] = value
    return fields


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, re.Pattern):
        return isinstance(value, str) and bool(kind.fullmatch(value))
    return bool(KINDS[kind](value) if isinstance(kind, str) else value in kind)


def _releases(origin: dict[str, str]) -> dict[str, Any]:
    """A marker where a release was not a step ago, with the receipt of its switch."""
    labels = "release, slot, version, why, probes, failed, slowest_ms"
    last = f"count by ({labels}) (compose_stack_release_record%s)"
    expr = f"{last % ''} unless {last % ' offset $__interval'}"
    return {
        "name": "Releases",
        "datasource": origin,
        "enable": True,
        "iconColor": "blue",
        # Where Grafana 11 and where Grafana 12 looks for it.
        "expr": expr,
        "target": {"refId": "Anno", "expr": expr},
        "titleFormat": "Release {{release}} {{why}}",
        "textFormat": (
            "{{version}} in slot {{slot}}: {{probes}} probes, {{failed}} failed, "
            "slowest {{slowest_ms}} ms"
        ),
        "tagKeys": "slot",
    }


def _variables(given: dict[str, Any], origin: dict[str, str], where: str) -> list[dict[str, Any]]:
    """The data source, job and instance, and what the dashboard has of its own."""
    chooser = {"name": "datasource", "label": "Data source", "type": "datasource"}
    found = [{**chooser, "query": origin["type"], "refresh": 1}]
    own = given["variables"]
    if origin["type"] == "prometheus":
        bare, brace, rest = given["targets"].partition("{")
        own = {
            "job": given["targets"],
            "instance": bare + '{job=~"$job"' + (f", {rest}" if brace else "}"),
            **own,
        }
    for name, source in own.items():
        several = {"multi": True, "includeAll": True, "allValue": ".+"}
        several["current"] = {"text": ["All"], "value": ["$__all"]}
        variable: dict[str, Any] = {"name": name, "label": name.capitalize()}
        if source is None:
            variable |= {"type": "textbox", "query": ""}
        elif isinstance(source, list):
            variable |= {"type": "custom", "query": ",".join(map(str, source)), **several}
        elif isinstance(source, str):
            query: Any = f"label_values({source.replace('$target', TARGET)}, {name})"
            if origin["type"] == "loki":
                query = {"type": 1, "label": name, "stream": source, "refId": name}
            variable |= {"type": "query", "query": query, "datasource": origin, "refresh": 2}
            variable |= {"sort": 1, **several}
        else:
            raise _error(where, f"has the variable {name!r}, which is no series, list or nothing")
        found.append(variable)
    return found


def _panels(given: dict[str, Any], origin: dict[str, str], dashboard: str) -> list[dict[str, Any]]:
    """The panels, row by row from left to right: lines about equally full, and stretched."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, contents in given["rows"].items():
        where = f"{dashboard}, row {row!r}"
        if not isinstance(contents, dict) or not contents:
            raise _error(where, "holds no panels (title to keys)")
        place = {"x": 0, "y": y, "w": 24, "h": 1}
        panels.append({"type": "row", "title": str(row), "collapsed": False, "gridPos": place})
        panels[-1]["panels"] = []
        y += 1
        waiting = [
            _panel(str(title), keys, origin, given["matchers"], where)
            for title, keys in contents.items()
        ]
        while waiting:
            left = sum(panel["gridPos"]["w"] for panel in waiting)
            share, used, line = left / -(-left // 24), 0, []
            while waiting and used < share and used + waiting[0]["gridPos"]["w"] <= 24:
                line.append(waiting.pop(0))
                used += line[-1]["gridPos"]["w"]
            x, height = 0, max(panel["gridPos"]["h"] for panel in line)
            for number, panel in enumerate(line):
                width = panel["gridPos"]["w"] + (24 - used + number) // len(line)
                panel["gridPos"] = {"x": x, "y": y, "w": width, "h": height}
                x += width
            y += height
            panels += line
    return [{"id": number, **panel} for number, panel in enumerate(panels, 1)]


def _panel(
    title: str, keys: Any, origin: dict[str, str], matchers: dict[str, str], row: str
) -> dict[str, Any]:
    where = f"{row}, panel {title!r}"
    given = _fields(keys, PANEL, where)
    kind = given["kind"]
    if kind != "logs" and not given["unit"]:
        raise _error(where, "lacks unit")
    for legend in given["queries"]:
        if not isinstance(legend, str):
            raise _error(where, f"has the legend {legend!r}, which is no text: quote it")
    queries = {
        legend: _fields(query if isinstance(query, dict) else {"expr": query}, QUERY, where)
        for legend, query in given["queries"].items()
    }
    targets, overrides = [], []
    for number, (legend, query) in enumerate(queries.items()):
        letter = chr(ord("A") + number)
        target: dict[str, Any] = {"refId": letter, "datasource": origin}
        target["legendFormat"] = re.sub(r"<(\w+)>", r"{{\1}}", legend)
        expr = query["expr"].strip()
        for name, text in matchers.items():
            expr = re.sub(rf"\${name}\b", text.replace("\\", r"\\"), expr)
        if origin["type"] == "loki":
            target |= {"expr": expr, "queryType": "range"}
        else:
            instant = kind in ("stat", "gauge", "table")
            target |= {"expr": _promql(expr, where), "editorMode": "code"}
            target |= {"instant": instant, "range": not instant}
            target["format"] = kind if kind in ("table", "heatmap") else "time_series"
        targets.append(target)
        properties = [{"id": "unit", "value": query["unit"]}] if query["unit"] else []
        matcher = {"id": "byFrameRefID", "options": letter}
        if kind == "table":
            matcher = {"id": "byName", "options": legend}
            if given["thresholds"]:  # of the values alone: labels have no colour
                cell = {"type": "color-background"}
                properties.append({"id": "custom.cellOptions", "value": cell})
        if properties:
            overrides.append({"matcher": matcher, "properties": properties})
    steps = {key: colour for key, colour in given["thresholds"].items() if key != "base"}
    for key, colour in given["thresholds"].items():
        if colour not in COLOURS or not (key == "base" or _fits(key, "a number")):
            raise _error(where, f"has the threshold {key}: {colour}, which is no number to colour")
    base = given["thresholds"].get("base", "green" if steps else "text")
    defaults = {
        **{key: given[key] for key in NUMBERS if given[key] is not None},
        "color": {"mode": "palette-classic" if kind == "timeseries" else "thresholds"},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": base, "value": None}]
            + [{"color": steps[key], "value": key} for key in sorted(steps)],
        },
        "mappings": [
            {"type": "value", "options": {str(key): {"text": text}}}
            for key, text in given["values"].items()
        ],
        "custom": _custom(kind, bool(steps), given["stack"]),
    }
    panel = {
        "type": kind,
        "title": title,
        "description": given["description"].strip(),
        "datasource": origin,
        "gridPos": {"w": given["width"] or SIZES[kind][0], "h": given["height"] or SIZES[kind][1]},
        "fieldConfig": {"defaults": defaults, "overrides": overrides},
        "options": _options(kind, given),
        "targets": targets,
        "links": [{"title": text, "url": url} for text, url in given["links"].items()],
    }
    if kind == "table":
        names = ["Value"] if len(targets) == 1 else [f"Value #{item['refId']}" for item in targets]
        headings = dict(zip(names, queries, strict=True))
        organize = {"excludeByName": {"Time": True}, "renameByName": headings}
        panel["transformations"] = [{"id": "merge", "options": {}}]
        panel["transformations"].append({"id": "organize", "options": organize})
    return panel


def _custom(kind: str, thresholds: bool, stack: bool) -> dict[str, Any]:
    if kind == "table":
        return {"align": "auto", "filterable": True}
    if kind != "timeseries":
        return {}
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if stack else 10,
        "showPoints": "never",
        "axisSoftMin": 0,
        "stacking": {"mode": "normal" if stack else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if thresholds else "off"},
    }


def _options(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    reduce = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    return {
        "timeseries": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "stat": {**reduce, "colorMode": "value", "graphMode": "none", "textMode": given["text"]},
        "gauge": reduce,
        "table": {"showHeader": True, "cellHeight": "sm"},
        "heatmap": {
            "calculate": False,
            "yAxis": {"unit": given["unit"]},
            "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        },
        "logs": {
            "showTime": True,
            "wrapLogMessage": True,
            "enableLogDetails": True,
            "sortOrder": "Descending",
            "dedupStrategy": "none",
        },
    }[kind]


def _promql(expr: str, where: str) -> str:
    """The query with $target written out, if every series has it and every rate Grafana's range."""
    plain = re.sub(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|`[^`]*`", '""', expr)
    for function, over in RATE.findall(plain):
        if over != "$__rate_interval" and (function, over) != ("increase", "$__range"):
            raise _error(where, f"takes {function} over [{over}], not [$__rate_interval]: {expr}")
    # Lists of labels, ranges and offsets are no series; nor is what stands before a parenthesis.
    plain = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", plain)
    plain = re.sub(r"\[[^]]*\]|\boffset\s+\S+", " ", plain)
    for name, matchers in SERIES.findall(plain):
        free = (name in WORDS and not matchers) or name == "ALERTS" or ":" in name
        if not free and "$target" not in matchers:
            raise _error(where, f"has {name or matchers} without {{$target}}: {expr}")
    return expr.replace("$target", TARGET)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"grafana_dashboard": grafana_dashboard}
