"""Every image and every CI action is pinned, and Renovate can find the pins."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from plugins.lookup.build_context import context_files

from .conftest import ROLES, ROOT, load, optional, tracked

WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
REFERENCES = sorted(
    (role, name, value)
    for role in ROLES
    for name, value in optional(ROOT / "roles" / role / "defaults" / "main.yml").items()
    if isinstance(value, str) and (name.endswith("_image") or "/" in value.split(":")[0])
    if re.match(r"^[a-z0-9.-]+\.[a-z]+/", value)
)


def renovate_patterns() -> list[re.Pattern[str]]:
    managers = json.loads((ROOT / "renovate.json").read_text())["customManagers"]
    # Renovate writes named groups as JavaScript does.
    return [
        re.compile(pattern.replace("(?<", "(?P<").replace("(?P<!", "(?<!").replace("(?P<=", "(?<="))
        for manager in managers
        for pattern in manager["matchStrings"]
    ]


@pytest.mark.parametrize(
    ("role", "name", "value"), REFERENCES, ids=[item[1] for item in REFERENCES]
)
def test_image_is_pinned_by_tag_and_digest(role: str, name: str, value: str) -> None:
    """A pull is reproducible, and Renovate moves tag and digest together."""
    assert re.fullmatch(r"[a-z0-9./_-]+:[\w.-]+@sha256:[0-9a-f]{64}", value), f"{role}: {name}"
    assert not re.search(r":latest@", value)
    text = (ROOT / "roles" / role / "defaults" / "main.yml").read_text()
    found = [match for pattern in renovate_patterns() for match in pattern.finditer(text)]
    assert any(
        match["currentDigest"] in value for match in found if "currentDigest" in match.groupdict()
    ), f"{name} has no `# renovate: datasource=docker` on the line above"


def test_there_are_images_to_pin() -> None:
    assert {name for _, name, _ in REFERENCES} >= {"postgres_image", "redis_image", "nginx_image"}


def test_no_latest_tag() -> None:
    """Neither a Dockerfile nor YAML names an image by a tag that moves."""
    for path in tracked():
        if path.suffix in {".yml", ".yaml", ".j2"} or path.name.startswith("Dockerfile"):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                code = line.split("#")[0]
                assert not re.search(r"[\w/]:latest\b", code), f"{path.relative_to(ROOT)}:{number}"


def test_workflow_pins_actions_by_commit() -> None:
    """BM-13: with the version in a comment that Renovate keeps."""
    uses = re.findall(r"uses: (.+)", WORKFLOW.read_text())
    assert uses
    for use in uses:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use), use


def test_workflow_lints_tests_and_pushes_for_both_architectures() -> None:
    """BM-13: with the same verbs as an operator, and no more permission than each job needs."""
    workflow = load(WORKFLOW)
    assert workflow["permissions"] == {}
    runs = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    assert any("make lint" in run for run in runs)
    assert any("make test" in run for run in runs)
    image = workflow["jobs"]["image"]
    assert set(image["needs"]) == {"lint", "test"}
    assert image["permissions"] == {"contents": "read", "packages": "write"}
    (build,) = (step for step in image["steps"] if "build-push-action" in step.get("uses", ""))
    assert build["with"]["platforms"] == "linux/amd64,linux/arm64"
    for name, job in workflow["jobs"].items():
        assert name == "image" or job["permissions"] == {"contents": "read"}


def test_workflow_finds_the_pinned_base() -> None:
    """BM-13: the image job reads the base's reference from the images role."""
    defaults = optional(ROOT / "roles" / "images" / "defaults" / "main.yml")
    (script,) = (
        step["run"] for step in load(WORKFLOW)["jobs"]["image"]["steps"] if step.get("id") == "base"
    )
    match = re.search(r"s/(.+?)/\\1/p", script)
    assert match
    # sed reads line by line.
    pattern = (
        match[1]
        .replace('[^" ]', '[^" \n]')
        .replace(".*", "[^\n]*")
        .replace(r"\{0,1\}", "?")
        .replace(r"\(", "(")
        .replace(r"\)", ")")
    )
    text = (ROOT / "roles" / "images" / "defaults" / "main.yml").read_text()
    found = re.search(pattern, text, re.MULTILINE)
    assert found
    assert found[1] == defaults["images_python"]


@pytest.mark.parametrize(
    "dockerfile",
    [ROOT / "app" / "Dockerfile", *sorted((ROOT / "files" / "images").glob("*/Dockerfile"))],
    ids=lambda path: path.parent.name,
)
def test_an_image_is_named_after_what_it_is_made_of(dockerfile: Path) -> None:
    """CS-4: a file that no step copies would rebuild the image without cause."""
    copied = {
        source.rstrip("/")
        for line in dockerfile.read_text().splitlines()
        if line.startswith(("COPY ", "ADD ")) and "--from=" not in line
        for source in line.split()[1:-1]
    }
    for name, _ in context_files(dockerfile.parent):
        parts = {name, *map(str, Path(name).parents)}
        assert name == "Dockerfile" or parts & copied, name
