#!/usr/bin/env python3
"""Write docs/variables.md from the roles' argument specifications."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "variables.md"

HEAD = """# Variables

Every variable that can be set, by role. Set them in `inventories/<name>/group_vars/stack.yml`;
what is not set there has the default below. Types are checked before a run changes anything.
Names that begin with an underscore are internal and not listed.

`.venv/bin/python scripts/variables_doc.py` makes this file from `roles/*/meta/argument_specs.yml`:
change those and run it again.
"""

# Ansible's documentation markup, such as C(), around what Markdown sets in backquotes.
_MARKUP = re.compile(r"\b[CVOIB]\(([^()]*)\)")


def roles(root: Path) -> list[str]:
    """The roles in the order in which the site playbook runs them."""
    (play,) = yaml.safe_load((root / "playbooks" / "site.yml").read_text())
    tasks = [inner for task in play["tasks"] for inner in task.get("block", [task])]
    imports = (task.get("ansible.builtin.import_role") for task in tasks)
    return [role["name"] for role in imports if role]


def text(value: str | list[str]) -> str:
    """A description in the form of a table cell."""
    joined = " ".join(value) if isinstance(value, list) else value
    marked = _MARKUP.sub(r"`\1`", " ".join(joined.split()))
    # Angle brackets outside backquotes would be taken for HTML.
    parts = marked.split("`")
    parts[::2] = [part.replace("<", "&lt;").replace(">", "&gt;") for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|")


def type_of(option: dict[str, Any]) -> str:
    """An option's type, with what it may hold."""
    name = str(option.get("type", "str"))
    if "elements" in option:
        name = f"{name} of {option['elements']}"
    if "choices" in option:
        name += ": " + ", ".join(f"`{choice}`" for choice in option["choices"])
    return name


def default_of(option: dict[str, Any]) -> str:
    """An option's default as it would be written in an inventory."""
    if option.get("required"):
        return "required"
    value = json.dumps(option.get("default"), ensure_ascii=False)
    if isinstance(option.get("default"), str) and option["default"]:
        value = option["default"]
    return f"`{value}`".replace("|", "\\|")


def render(root: Path) -> str:
    """The whole document."""
    parts = [HEAD]
    for role in roles(root):
        path = root / "roles" / role / "meta" / "argument_specs.yml"
        if not path.exists():
            continue
        entry = yaml.safe_load(path.read_text())["argument_specs"]["main"]
        options = entry.get("options") or {}
        if not options:
            continue
        summary = text(entry["short_description"]).rstrip(".")
        rows = [
            " | ".join(
                [f"| `{name}`", type_of(option), default_of(option), text(option["description"])]
            )
            + " |"
            for name, option in options.items()
        ]
        table = ["| Variable | Type | Default | Meaning |", "|---|---|---|---|", *rows]
        parts.append("\n".join([f"## {role}", "", f"{summary}.", "", *table]) + "\n")
    return "\n".join(parts)


def main() -> int:
    """Write the document, or with --check only say whether it is up to date."""
    wanted = render(ROOT)
    if "--check" in sys.argv[1:]:
        if DOCUMENT.exists() and DOCUMENT.read_text() == wanted:
            return 0
        print(f"{DOCUMENT.relative_to(ROOT)} is out of date: run {Path(__file__).name}.")
        return 1
    DOCUMENT.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
