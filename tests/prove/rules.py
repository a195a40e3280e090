"""The alert rules as they are written, and how late each may be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from tests.harness import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

MARGIN_SECONDS = 20
"""For what waits for a processor on a small machine, and for the way to the receiver."""
COLLECTOR_SECONDS = 15
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(duration: str) -> int:
    return sum(int(n) * UNITS[unit] for n, unit in re.findall(r"(\d+)([smhd])", duration))


def setting(path: str, name: str) -> int:
    """A duration from a template of a configuration, its first mention."""
    found = re.search(rf"^ *{name}: (\w+)$", (ROOT / "roles" / path).read_text(), re.MULTILINE)
    assert found, f"{path}: {name}"
    return seconds(found[1])


PROMETHEUS = "prometheus/templates/config/prometheus.yml.j2"
ALERTMANAGER = "alertmanager/templates/config/alertmanager.yml.j2"
SCRAPE_SECONDS = setting(PROMETHEUS, "scrape_interval")
EVALUATION_SECONDS = setting(PROMETHEUS, "evaluation_interval")
GROUP_WAIT_SECONDS = setting(ALERTMANAGER, "group_wait")
GROUP_INTERVAL_SECONDS = setting(ALERTMANAGER, "group_interval")


def _rules() -> Iterator[tuple[dict[str, Any], int]]:
    """Each rule, and how often it is evaluated."""
    for path in sorted(ROOT.glob("roles/*/prometheus/rules.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            every = seconds(group["interval"]) if "interval" in group else EVALUATION_SECONDS
            for rule in group["rules"]:
                yield rule, every


RECORDED = {rule["record"]: (rule["expr"], every) for rule, every in _rules() if "record" in rule}


@dataclass(frozen=True)
class Rule:
    """An alert of one severity."""

    alert: str
    severity: str
    expression: str
    hold: int
    every: int
    has_sisters: bool

    @property
    def key(self) -> tuple[str, str]:
        return self.alert, self.severity

    @property
    def limit(self) -> int:
        """Seconds from the moment at which a metric shows the fault to its delivery.

        An alert that comes second in its group, as the critical one after its warning, waits for
        the next notification of the group.
        """
        collected = COLLECTOR_SECONDS if "container_" in self.expression else 0
        wait = GROUP_INTERVAL_SECONDS if self.has_sisters else GROUP_WAIT_SECONDS
        evaluated = self.every + _recorded_after(self.expression)
        return collected + SCRAPE_SECONDS + evaluated + self.hold + wait + MARGIN_SECONDS


def _recorded_after(expression: str) -> int:
    """Seconds that the recorded series in an expression may lag behind."""
    used = [RECORDED[name] for name in re.findall(r"\w+:[\w:]+", expression) if name in RECORDED]
    return max((every + _recorded_after(inner) for inner, every in used), default=0)


def _alerts() -> dict[tuple[str, str], Rule]:
    alerts = [(rule, every) for rule, every in _rules() if "alert" in rule]
    names = [rule["alert"] for rule, _ in alerts]
    found = [
        Rule(
            rule["alert"],
            rule["labels"]["severity"],
            rule["expr"],
            seconds(rule.get("for", "0s")),
            every,
            names.count(rule["alert"]) > 1,
        )
        for rule, every in alerts
    ]
    return {rule.key: rule for rule in found}


ALERTS = _alerts()
