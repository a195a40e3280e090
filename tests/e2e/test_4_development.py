"""The development settings: source mounted and reloaded, databases on loopback, a little data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import redis
import yaml

from tests.harness import ROOT, copy_tree, wait_for

from .conftest import SETTINGS, site_yml

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Stack

pytestmark = pytest.mark.timeout(240, func_only=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that the test may change it; readable by the containers' user."""
    directory = tmp_path_factory.mktemp("source")
    for path in [directory, directory.parent, directory.parent.parent]:
        path.chmod(0o755)
    copy_tree(ROOT / "app" / "src", directory / "src")
    return directory / "src"


@pytest.fixture(scope="module")
def development(anything: Stack, source: Path) -> Stack:
    """The stack with what inventories/dev sets, but for the place of the source."""
    path = ROOT / "inventories" / "dev" / "group_vars" / "stack.yml"
    variables: dict[str, Any] = yaml.safe_load(path.read_text())
    assert variables["api_source_dir"].endswith("/app/src")
    site_yml(**{**variables, "api_source_dir": str(source)}).succeeded()
    anything.wait_healthy()
    return anything


def test_code_changes_show_at_once(development: Stack, source: Path) -> None:
    """UT-12: no build, no restart, no command."""
    before = development.lives()
    routes = source / "compose_app" / "health" / "routes.py"
    text = routes.read_text()
    changed = text.replace('{"status": "ok"}', '{"status": "ok", "changed": True}')
    assert changed != text
    routes.write_text(changed)

    def shows() -> bool:
        answer = development.site.get("/health/live")
        return answer.status_code == 200 and answer.json().get("changed") is True

    wait_for("the changed route", shows, 10)
    assert development.lives() == before


def test_no_limits(development: Stack) -> None:
    """FS-6, CS-8: of memory, time or requests; of processes there are some, as everywhere."""
    for name, items in development.services().items():
        for host in (item["HostConfig"] for item in items):
            assert (host["Memory"], host["NanoCpus"]) == (0, 0), name
            assert host["PidsLimit"] > 0, name
    assert {"api-blue", "api-green"} & set(development.services()) == {development.api_slot()}
    answers = [development.site.get("/api/items?limit=1").status_code for _ in range(60)]
    assert set(answers) == {200}


def test_demonstration_data(development: Stack) -> None:
    """CS-15: something to look at, in development and on the laptop."""
    assert development.site.patiently("GET", "/api/items").json()["items"]


def test_databases_answer_on_loopback(development: Stack) -> None:
    """CS-7: with the secrets of the stack, and not without."""
    user, password = development.login("postgres_app_password")
    where = {"host": "127.0.0.1", "port": SETTINGS["devports_postgres_port"], "dbname": "app"}
    with psycopg.connect(**where, user=user, password=password, connect_timeout=5) as connection:
        assert connection.execute("SELECT count(*) FROM items").fetchone()
    for account in ((user, "wrong"), ("app", password)):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(**where, user=account[0], password=account[1], connect_timeout=5)

    port = int(SETTINGS["devports_redis_port"])
    user, password = development.login("redis_cache_password")
    assert redis.Redis(port=port, username=user, password=password, socket_timeout=5).ping()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=port, socket_timeout=5).ping()


def test_without_the_profile_they_are_gone(development: Stack) -> None:
    """CS-7: and the API is back on the image's own code."""
    site_yml().succeeded()
    development.wait_healthy()
    assert "devports" not in development.services()
    assert "changed" not in development.site.get("/health/live").json()
