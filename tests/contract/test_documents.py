"""The documents speak of what is there."""

from __future__ import annotations

import re

import yaml

from .conftest import ROLES, ROOT, tracked

README = ROOT / "README.md"
VERBS = {
    "up",
    "up-all",
    "down",
    "build",
    "logs",
    "ps",
    "clean",
    "certs",
    "test",
    "shell-app",
    "shell-db",
}


def verbs() -> set[str]:
    """Targets of the Makefile that are meant for people: those with a help text."""
    return set(re.findall(r"^([a-z][a-z-]*):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_make_has_the_verbs() -> None:
    """CS-13."""
    assert verbs() >= VERBS


def table(text: str, first: str) -> list[list[str]]:
    """Rows of the table whose first column is called so, its heading among them."""
    start = text.index(f"| {first} |")
    lines = text[start : text.index("\n\n", start)].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [rows[0], *rows[2:]]


def test_readme_names_every_verb() -> None:
    """CS-14: the table has those there are, and each document only those."""
    listed = [re.findall(r"`make ([a-z-]+)`", row[0]) for row in table(README.read_text(), "Verb")]
    assert sorted(verb for row in listed for verb in row) == sorted(verbs())
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in tracked():
        if path.suffix == ".md":
            used = set(re.findall(r"(?:^ *|`)make ([a-z-]+)", path.read_text(), re.MULTILINE))
            assert used <= targets, f"{path.relative_to(ROOT)}: {used - targets}"


def test_every_secret_can_be_rotated_or_says_why_not() -> None:
    """FS-8: what is generated has its words for `make rotate`, and each has its row."""
    file = ROOT / "roles" / "secrets" / "vars" / "main.yml"
    rotated = {*yaml.safe_load(file.read_text())["_secrets_what"]}
    listed = table(README.read_text(), "Secret")[1:]
    generated = {row[0].strip("`") for row in listed if "of your own" not in row[1]}
    assert generated == {*rotated, "grafana_secret_key"}
    runbook = (ROOT / "docs" / "runbooks" / "rotation.md").read_text()
    for name in generated:
        assert f"| `{name}` |" in runbook, name


def test_readme_shows_the_drawing_and_where_services_answer() -> None:
    """CS-14."""
    text = README.read_text()
    drawing = re.search(r"^!\[[^\]]{40,}\]\((\S+)\)$", text, re.MULTILINE)
    assert drawing
    assert "<svg" in (ROOT / drawing[1]).read_text()
    heading, *services = table(text, "Service")
    assert heading[:3] == ["Service", "What it is", "Reachable at"]
    places = {name: row[2] for row in services for name in re.findall(r"`([\w-]+)`", row[0])}
    for name, port in {
        "nginx": "443",
        "api-blue": "9100",
        "postgres": "5432",
        "redis-cache": "6379",
        "redis-queue": "6379",
        "rabbitmq": "5672",
        "rabbitmq-management": "15672",
        "devports": "5432",
    }.items():
        assert port in places[name], name
    urls = " ".join(row[0] for row in table(text, "URL"))
    for url in ("/health", "/api/items", "/api/cache/{key}", "/docs"):
        assert f"`{url}`" in urls


def test_readme_has_its_chapters() -> None:
    """CS-14: from the drawing to the notes on production."""
    headings = " ".join(re.findall(r"^#+ (.+)$", README.read_text(), re.MULTILINE)).lower()
    for word in (
        "architecture",
        "start",
        "service",
        "verbs",
        "monitoring",
        "tls",
        "variables",
        "networks",
        "production",
    ):
        assert word in headings, word


def test_contributing_shows_how_to_add_a_room() -> None:
    """CS-14: with every file that a room has."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    chapter = text.partition("\n## Add a service room\n")[2].partition("\n## ")[0]
    for name in ("defaults", "meta", "vars", "tasks", "templates"):
        assert f"`roles/hello/{name}/" in chapter, name
    assert "`playbooks/site.yml`" in chapter


def test_links_resolve() -> None:
    for path in tracked():
        if path.suffix != ".md":
            continue
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            linked = path.parent / name if name else path
            assert linked.exists(), f"{path.relative_to(ROOT)} links to {target}"
            if anchor and linked.suffix == ".md":
                assert anchor in _anchors(linked.read_text()), f"{path.relative_to(ROOT)}: {target}"


def _anchors(text: str) -> set[str]:
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


def test_no_path_of_a_developers_machine() -> None:
    """What works on one machine only does not belong here."""
    forbidden = re.compile(r"(?<![\w.])(/home/(?!deploy/)[a-z]+/|/Users/|/work/|/root/\.pyenv)")
    here = "tests/contract/test_documents.py"
    for path in tracked():
        name = str(path.relative_to(ROOT))
        if name == here or path.suffix == ".lock":
            continue
        found = forbidden.search(path.read_text(errors="replace"))
        assert not found, f"{name}: {found[0]}"


def test_every_role_is_in_the_readme() -> None:
    """CS-14: the service map and the list of shared roles leave none out."""
    text = README.read_text()
    assert {role for role in ROLES if role not in text} == set()
