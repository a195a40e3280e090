"""The dashboards of the rooms as Ansible renders them, and the queries in them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.harness import BIN, ROOT

# What Grafana would put in place of its own variables, at a scrape interval of 15 s.
GRAFANA = {
    "__rate_interval": "1m",
    "__interval": "15s",
    "__auto": "1m",
    "__range": "1h",
}
NO_SERIES = {"and", "or", "unless", "bool", "inf", "nan", "group_left", "group_right"}


def sources() -> list[Path]:
    return sorted(ROOT.glob("roles/*/dashboards/*.json.j2"))


@cache
def dashboards() -> dict[str, dict[str, Any]]:
    """Every dashboard by its path (such as redis/redis), rendered by Ansible's own template."""
    names = [f"{path.parts[-3]}/{path.name.removesuffix('.json.j2')}" for path in sources()]
    with tempfile.TemporaryDirectory(prefix="dashboards-") as scratch:
        outputs = [Path(scratch, f"{number}.json") for number, _ in enumerate(names)]
        task = {
            "name": "Render",
            "ansible.builtin.template": {"src": "{{ item[0] }}", "dest": "{{ item[1] }}"},
            "loop": [[str(src), str(dest)] for src, dest in zip(sources(), outputs, strict=True)],
        }
        play = {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars": {"ansible_python_interpreter": "{{ ansible_playbook_python }}"},
            "tasks": [task],
        }
        Path(scratch, "play.yml").write_text(yaml.safe_dump([play]))
        done = subprocess.run(
            [str(BIN / "ansible-playbook"), "-i", "localhost,", f"{scratch}/play.yml"],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return {
            name: json.loads(path.read_text()) for name, path in zip(names, outputs, strict=True)
        }


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels that show something."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def targets(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """Each query as Grafana would send it with everything chosen, and the title of its panel."""
    return [
        (panel["title"], expand(target["expr"], dashboard))
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]


def queries(dashboard: dict[str, Any], source: str = "prometheus") -> list[str]:
    """The queries of a dashboard, if they are for this kind of data source."""
    if dashboard["templating"]["list"][0]["query"] != source:
        return []
    return [expr for _, expr in targets(dashboard)]


def other_queries(dashboard: dict[str, Any]) -> list[str]:
    """What is asked of Prometheus besides: for the annotations, and for the variables' values."""
    asked = [item["expr"] for item in dashboard["annotations"]["list"]]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query" and isinstance(variable["query"], str):
            found = re.fullmatch(r"label_values\((.+), \w+\)", variable["query"])
            assert found, variable["query"]
            asked.append(found[1])
    return [expand(expr, dashboard) for expr in asked]


def expand(expr: str, dashboard: dict[str, Any]) -> str:
    values = dict(GRAFANA)
    for variable in dashboard["templating"]["list"]:
        values[variable["name"]] = "" if variable["type"] == "textbox" else ".+"
    return re.sub(r"\$(\w+)|\$\{(\w+)\}", lambda found: values[found[1] or found[2]], expr)


def selectors(expr: str) -> list[tuple[str, str]]:
    """Every series a PromQL expression selects: its name and its matchers."""
    strings: list[str] = []

    def keep(found: re.Match[str]) -> str:
        strings.append(found[0])
        return f'"{len(strings) - 1}"'

    text = re.sub(r'"(?:\\.|[^"\\])*"', keep, expr)
    text = re.sub(r"\[[^\]]*\]|\boffset\s+\S+", " ", text)
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    found = re.findall(r"(?<![\w:$.])([A-Za-z_:][\w:]*)?\s*(\{[^}]*\}|\(|)", text)
    return [
        (name, re.sub(r'"(\d+)"', lambda number: strings[int(number[1])], rest))
        for name, rest in found
        if (name or rest.startswith("{")) and rest != "(" and name not in NO_SERIES
    ]
