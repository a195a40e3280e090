"""CS-12, CS-14: the table of variables says what the roles' argument specifications say."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from scripts.variables_doc import DOCUMENT, ROOT, render, roles, text

if TYPE_CHECKING:
    from pathlib import Path


def options(role: str) -> dict[str, Any]:
    path = ROOT / "roles" / role / "meta" / "argument_specs.yml"
    if not path.exists():
        return {}
    return yaml.safe_load(path.read_text())["argument_specs"]["main"].get("options") or {}


def test_document_is_up_to_date() -> None:
    """CS-12: docs/variables.md is what scripts/variables_doc.py writes."""
    assert DOCUMENT.read_text() == render(ROOT), "run scripts/variables_doc.py"


@pytest.mark.parametrize("role", roles(ROOT))
def test_every_variable_has_one_row(role: str) -> None:
    """CS-14: one row for each variable, with its default."""
    lines = DOCUMENT.read_text().splitlines()
    for name, option in options(role).items():
        rows = [line for line in lines if line.startswith(f"| `{name}` |")]
        assert len(rows) == 1, name
        default = option.get("default")
        if default not in (None, "", [], {}) and isinstance(default, str | int):
            shown = str(default).lower() if isinstance(default, bool) else str(default)
            assert f"`{shown}`" in rows[0], name


def test_a_changed_default_is_noticed(tmp_path: Path) -> None:
    """CS-12: the document depends on every specification it is made from."""
    for name in ("playbooks", "roles"):
        shutil.copytree(ROOT / name, tmp_path / name)
    specs = tmp_path / "roles" / "redis" / "meta" / "argument_specs.yml"
    specs.write_text(specs.read_text().replace("default: 192", "default: 193", 1))
    assert render(tmp_path) != DOCUMENT.read_text()


def test_text_is_safe_in_a_table() -> None:
    """CS-14: markup, HTML and column separators do not break the table."""
    assert text("C(a) is <b> | `<c>`") == "`a` is &lt;b&gt; \\| `<c>`"
