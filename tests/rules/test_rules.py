"""The rules of every room: promtool plays their tests, and each alert brings what a person needs.

CS-10, UT-10, BM-6: what is scraped ends in alerts that fire when they should and only then.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    Promtool = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).resolve().parents[2]
RULES = sorted(ROOT.glob("roles/*/prometheus/rules.yml"))
CASES = sorted(Path(__file__).parent.glob("*_test.yml"))
SEVERITIES = {"critical", "warning", "none"}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rules(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Room and rule, of every rule that is an `alert` or a `record`."""
    for path in RULES:
        for group in load(path)["groups"]:
            for rule in group["rules"]:
                if kind in rule:
                    yield path.parents[1].name, rule


ALERTS = list(rules("alert"))
each_alert = pytest.mark.parametrize(
    ("room", "rule"),
    ALERTS,
    ids=[f"{rule['alert']}-{rule['labels']['severity']}" for _, rule in ALERTS],
)


def cases() -> Iterator[dict[str, Any]]:
    for path in CASES:
        for test in load(path)["tests"]:
            yield from test.get("alert_rule_test", [])


def anchors(document: Path) -> set[str]:
    """As in tests/contract/test_documents.py."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    }


def test_promtool_accepts_every_rule(promtool: Promtool) -> None:
    """CS-10: Prometheus would refuse the whole configuration for one bad file."""
    names = [str(path.relative_to(ROOT)) for path in RULES]
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", *names)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem.removesuffix("_test"))
def test_promtool_plays(case: Path, promtool: Promtool) -> None:
    """CS-10, BM-6: alerts fire with the labels and words they should, and stay silent below."""
    done = promtool("test", "rules", str(case.relative_to(ROOT)))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_room_with_rules_has_a_file_of_cases() -> None:
    played = {(case.parent / name).resolve() for case in CASES for name in load(case)["rule_files"]}
    assert set(RULES) == played


@each_alert
def test_alert_says_what_a_person_needs(room: str, rule: dict[str, Any]) -> None:
    labels, annotations = rule["labels"], rule["annotations"]
    assert labels["severity"] in SEVERITIES
    assert labels["service"] == room
    for name in ("summary", "description"):
        assert annotations[name].strip(), name
    assert not annotations["summary"].endswith(".")
    assert annotations["description"].endswith(".")


@each_alert
def test_alert_leads_to_its_runbook(room: str, rule: dict[str, Any]) -> None:
    name, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor == rule["alert"].lower()
    assert anchor in anchors(ROOT / name)


@each_alert
def test_alert_has_a_case_that_fires_and_one_that_does_not(room: str, rule: dict[str, Any]) -> None:
    own = [case for case in cases() if case["alertname"] == rule["alert"]]
    wanted = {label: rule["labels"][label] for label in ("severity", "service")}
    fires = [
        alert
        for case in own
        for alert in case["exp_alerts"]
        if wanted.items() <= alert["exp_labels"].items()
    ]
    assert fires, "no case in which it fires"
    if rule["labels"]["severity"] != "none":
        assert [case for case in own if not case["exp_alerts"]], "no case in which it is silent"


def test_alerts_look_at_the_jobs_of_their_rooms() -> None:
    """A metric of another job must not raise one: every selector of a raw metric names its job."""
    for _, rule in [*ALERTS, *rules("record")]:
        name = rule.get("alert") or rule["record"]
        raw = re.sub(r"\w+:\w+:\w+(\{[^}]*\})?", "", rule["expr"])
        for selector in re.findall(r"\{[^}]*\}", raw):
            assert "job=" in selector, f"{name}: {selector}"


def test_alerts_that_share_a_name_differ_in_severity() -> None:
    keys = [(rule["alert"], rule["labels"]["severity"]) for _, rule in ALERTS]
    assert len(keys) == len(set(keys))


def test_runbook_knows_no_alert_that_is_gone() -> None:
    document = ROOT / "docs" / "runbooks" / "alerts.md"
    headings = set(re.findall(r"^## ([A-Z]\w+)$", document.read_text(), re.MULTILINE))
    assert headings == {rule["alert"] for _, rule in ALERTS}


def test_records_are_named_by_level_metric_and_operations() -> None:
    for room, rule in rules("record"):
        assert re.fullmatch(rf"{room}:[a-z_]+:[a-z0-9_]+", rule["record"]), rule["record"]
