"""The environments: the same playbook, roles and templates everywhere."""

from __future__ import annotations

import re

import pytest

from scripts.variables_doc import roles

from .conftest import INVENTORIES, ROLES, ROOT, load, optional


def variables(inventory: str) -> dict[str, object]:
    merged: dict[str, object] = {}
    for path in sorted((ROOT / "inventories" / inventory).glob("*_vars/**/*.yml")):
        merged.update(optional(path))
    return merged


def test_the_environments_exist() -> None:
    """BM-7: dev, test, staging and production, and the laptop."""
    assert set(INVENTORIES) >= {"local", "dev", "test", "staging", "production"}


def test_test_databases_live_in_memory() -> None:
    """BM-7."""
    settings = variables("test")
    assert str(settings["postgres_data_dir"]).startswith("/dev/shm/")
    assert str(settings["redis_data_dir"]).startswith("/dev/shm/")
    assert str(settings["rabbitmq_data_dir"]).startswith("/dev/shm/")


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_demonstration_data_only_on_a_laptop(inventory: str) -> None:
    """CS-15: and off wherever an inventory does not ask for it."""
    assert optional(ROOT / "roles" / "api" / "defaults" / "main.yml")["api_demo_data"] is False
    if inventory not in {"local", "dev"}:
        assert not variables(inventory).get("api_demo_data", False)


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_servers_have_a_firewall(inventory: str) -> None:
    """BM-12: and no laptop gets one unasked."""
    on = inventory in {"staging", "production"}
    assert variables(inventory).get("firewall_enabled", False) is on


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_every_inventory_feeds_the_same_group(inventory: str) -> None:
    """FS-1: site.yml knows one group and no environment."""
    assert "stack" in load(ROOT / "inventories" / inventory / "hosts.yml")


def test_roles_know_no_environment() -> None:
    """FS-1: what differs is a variable, never a branch on the inventory's or a project's name."""
    place = re.compile(r"inventory_dir|inventory_file|\bgroups\[|group_names")
    name = r"(stack_project|inventory_hostname)"
    branch = re.compile(
        rf"(\bif|\bwhen:|\bin|==|!=)\s+\(?{name}\b(?! is| in)|{name}\s*(==|!=|in\s)"
    )
    for role in ROLES:
        for path in sorted((ROOT / "roles" / role).rglob("*")):
            if not path.is_file() or path.suffix in {".md", ".pyc"}:
                continue
            text = path.read_text()
            found = place.search(text) or branch.search(text)
            assert not found, f"{path.relative_to(ROOT)}: {found[0]}"


def test_site_deploys_every_role_once() -> None:
    """FS-1, CS-1: no role stands beside the one playbook."""
    listed = roles(ROOT)
    assert sorted(listed) == ROLES
    order = ["preflight", "docker", "firewall", "images", "secrets", "tls", "stack"]
    assert [role for role in listed if role in order] == order


def test_every_role_describes_itself() -> None:
    """CS-12."""
    for role in ROLES:
        main = load(ROOT / "roles" / role / "meta" / "argument_specs.yml")["argument_specs"]["main"]
        assert main["short_description"], role
