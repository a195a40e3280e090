"""Variables: documented where set, specified as they default, spelled as defined."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from jinja2 import Environment, TemplateSyntaxError, meta

from .conftest import INVENTORIES, ROLES, ROOT, Literal, load, optional

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Inventory variables that are Ansible's own.
CONNECTION = re.compile(r"^ansible_")
CONDITIONS = {"when", "until", "changed_when", "failed_when", "that"}


def defaults(role: str) -> dict[str, Any]:
    return optional(ROOT / "roles" / role / "defaults" / "main.yml")


ALL_DEFAULTS = {name: role for role in ROLES for name in defaults(role)}


@pytest.mark.parametrize("role", ROLES)
def test_specs_equal_defaults(role: str) -> None:
    """CS-12: a role checks exactly the variables it documents, and says the same defaults."""
    path = ROOT / "roles" / role / "meta" / "argument_specs.yml"
    assert path.exists(), f"roles/{role} has no meta/argument_specs.yml"
    options = load(path)["argument_specs"]["main"].get("options", {})
    assert set(options) == set(defaults(role))
    for name, value in defaults(role).items():
        option = options[name]
        assert option.get("description"), f"{name} has no description"
        assert option.get("type"), f"{name} has no type"
        assert "default" in option, f"{name} has no default in the specification"
        assert option["default"] == value, f"{name}: {option['default']!r} is not {value!r}"
        assert type(option["default"]) is type(value), name


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_documented_where_it_is_set(role: str) -> None:
    """CS-12: a comment stands above each variable, and no two say the same."""
    path = ROOT / "roles" / role / "defaults" / "main.yml"
    if not path.exists():
        return
    above: list[str] = []
    said: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name = re.match(r"([a-z]\w*):", line)
        if name:
            text = " ".join(above)
            assert text, f"{name[1]} has no comment above it"
            assert text not in said, f"{name[1]} says what {said[text]} says"
            said[text] = name[1]
        # Renovate's own line describes nothing.
        if not line.startswith("#"):
            above = []
        elif not line.startswith("# renovate:"):
            above.append(line)
    options = load(path.parents[1] / "meta" / "argument_specs.yml")["argument_specs"]["main"]
    texts = [str(option["description"]) for option in options.get("options", {}).values()]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize("role", ROLES)
def test_variables_carry_their_roles_name(role: str) -> None:
    """CS-12: so that nothing overwrites another role's."""
    for name in defaults(role):
        assert name.startswith(f"{role}_"), name
    for name in optional(ROOT / "roles" / role / "vars" / "main.yml"):
        assert name.startswith(f"_{role}_"), name


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_inventories_set_only_variables_that_exist(inventory: str) -> None:
    """FS-1: an inventory differs by documented variables and by nothing else."""
    directory = ROOT / "inventories" / inventory
    for path in sorted(directory.glob("*_vars/**/*.yml")):
        for name in optional(path):
            assert name in ALL_DEFAULTS or CONNECTION.match(name), f"{path.name}: {name}"
    for _host, variables in _hosts(load(directory / "hosts.yml")):
        for name in variables:
            assert name in ALL_DEFAULTS or CONNECTION.match(name), f"hosts.yml: {name}"


def _hosts(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for group in node.values():
        for host, variables in (group.get("hosts") or {}).items():
            yield host, variables or {}
        yield from _hosts(group.get("children") or {})


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_in_use_is_defined(role: str) -> None:
    """A misspelled variable in a template would be found by an operator, at night."""
    known = set(ALL_DEFAULTS)
    # Names that action plugins hand to what they evaluate.
    for plugin in (ROOT / "plugins" / "action").glob("*.py"):
        known |= set(re.findall(r'"(\w+)"', plugin.read_text()))
    for other in ROLES:
        known |= set(optional(ROOT / "roles" / other / "vars" / "main.yml"))
        for path in (ROOT / "roles" / other / "tasks").glob("*.yml"):
            known |= set(_made_by(load(path) or []))
    used: dict[str, str] = {}
    for path in sorted((ROOT / "roles" / role).rglob("*")):
        if path.suffix == ".j2":
            used.update(dict.fromkeys(_names(path.read_text(), path), path.name))
        elif path.suffix == ".yml" and path.parent.name in {
            "tasks",
            "handlers",
            "vars",
            "defaults",
        }:
            for text in _expressions(load(path)):
                used.update(dict.fromkeys(_names(text, path), path.name))
    prefixes = tuple(f"{name}_" for name in ROLES) + tuple(f"_{name}_" for name in ROLES)
    unknown = {
        name: path for name, path in used.items() if name.startswith(prefixes) and name not in known
    }
    assert not unknown


def _names(text: str, path: Path) -> set[str]:
    try:
        return set(meta.find_undeclared_variables(_environment().parse(text)))
    except TemplateSyntaxError as error:
        raise AssertionError(f"{path}: {error}") from error


def _environment() -> Environment:
    environment = Environment(extensions=["jinja2.ext.do", "jinja2.ext.loopcontrols"])
    environment.filters = _Anything()
    environment.tests = _Anything()
    return environment


class _Anything(dict[str, Any]):
    """Templates are parsed here and never rendered: Ansible's filters need not be known."""

    def get(self, key: str, default: Any = None) -> Any:
        return str


def _expressions(node: Any, key: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _expressions(value, name)
    elif isinstance(node, list):
        for item in node:
            yield from _expressions(item, key)
    elif isinstance(node, str) and not isinstance(node, Literal):
        if "{{" in node or "{%" in node:
            yield node
        elif key in CONDITIONS:
            yield "{{ " + node + " }}"


def _made_by(node: Any) -> Iterator[str]:
    """Names that tasks register, set or pass on."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "register":
                yield value
            elif key in {"ansible.builtin.set_fact", "vars"} and isinstance(value, dict):
                yield from value
            if key == "loop_control" and isinstance(value, dict):
                yield from (str(value[name]) for name in ("loop_var", "index_var") if name in value)
            yield from _made_by(value)
    elif isinstance(node, list):
        for item in node:
            yield from _made_by(item)
