"""Changes that go wrong: a message, an exit code, a stack that serves on, a next run that works."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from tests.harness import ROOT, copy_tree, listening, playbook, wait_for

from .conftest import DIRECTORY, INVENTORY, PROJECT, SETTINGS, site_yml

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Run, Stack

pytestmark = pytest.mark.timeout(300, func_only=True)


class Watch:
    """Asks for /health all the while; counts what was not 200."""

    def __init__(self, stack: Stack) -> None:
        self.asked = 0
        self.failed: list[str] = []
        self._stack = stack
        self._stop = threading.Event()

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            self.asked += 1
            try:
                status = self._stack.site.get("/health").status_code
                if status != 200:
                    self.failed.append(str(status))
            except Exception as error:  # noqa: BLE001 - whatever it is, a user would have seen it
                self.failed.append(repr(error))


@contextlib.contextmanager
def serving(stack: Stack) -> Iterator[None]:
    """Nobody notices what happens inside."""
    watch = Watch(stack)
    thread = threading.Thread(target=watch._run)
    thread.start()
    try:
        yield
    finally:
        watch._stop.set()
        thread.join()
    assert watch.failed == []
    assert watch.asked > 5


@contextlib.contextmanager
def asking(stack: Stack, path: str) -> Iterator[None]:
    """A client that asks for one thing after the other, a little below what it may."""
    stop = threading.Event()

    def ask() -> None:
        number = 0
        while not stop.wait(0.12):
            number += 1
            with contextlib.suppress(requests.RequestException):
                stack.site.get(f"{path}/{number}")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def refused(run: Run, *words: str) -> None:
    """The run failed and says why."""
    run.failed()
    for word in words:
        assert word in run.output, f"{word!r} is not in\n{run.output[-4000:]}"


class TestRefusedBeforeAnythingChanges:
    """Preflight and validation."""

    @pytest.mark.parametrize(
        ("variables", "words"),
        [
            ({"nginx_content_security_policy": 'x"; } bogus_directive on; #'}, ["bogus_directive"]),
            ({"redis_queue_appendfsync": "sometimes"}, ["redis_queue_appendfsync"]),
            ({"postgres_memory_mb": "much"}, ["postgres_memory_mb"]),
            ({"nginx_htps_port": 1}, ["nginx_htps_port", "nginx_https_port"]),
            ({"stack_services": ["postgres", "radis"]}, ["radis"]),
        ],
        ids=["nginx-syntax", "redis-choice", "wrong-type", "misspelt", "unknown-service"],
    )
    def test_bad_setting(self, stack: Stack, variables: dict[str, Any], words: list[str]) -> None:
        """CS-12: names the setting; nothing live changes."""
        before = stack.lives()
        tree = stack.engine.run("find", f"{DIRECTORY}/services", "-ls")
        refused(site_yml(**variables), *words)
        assert stack.lives() == before
        assert stack.engine.run("find", f"{DIRECTORY}/services", "-ls") == tree

    def test_port_in_use(self, stack: Stack) -> None:
        """CS-1: says by what, before the stack is touched."""
        before = stack.lives()
        with listening(18999):
            refused(site_yml(nginx_https_port=18999), "18999", "python")
        assert stack.lives() == before

    def test_engine_elsewhere(self, stack: Stack) -> None:
        """CS-1: docker would ask another engine, or none: said before anything else is tried."""
        before = stack.lives()
        environment = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
        run = playbook(INVENTORY, environment=environment)
        refused(run, "Preflight found 1 problem", "'unix:///nonexistent/docker.sock'")
        refused(run, "would not ask this host's own engine", "unset DOCKER_HOST")
        assert stack.lives() == before


class TestSlotThatNeverServes:
    """A change that starts and does not become healthy."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        copy_tree(ROOT / "app" / "src", tmp_path / "src")
        # The containers' user must be able to read it.
        for path in [tmp_path, *tmp_path.parents]:
            if path.owner() == "root" and path.name.startswith("pytest-"):
                path.chmod(0o755)
        tmp_path.chmod(0o755)
        return tmp_path / "src"

    def test_application_that_does_not_start(self, stack: Stack, source: Path) -> None:
        """FS-3, CS-1: exit code, the failing container's last words, and no request lost."""
        (source / "compose_app" / "app.py").write_text("raise RuntimeError('born broken')\n")
        before = {name for name, item in stack.services().items() if item}
        with serving(stack):
            run = site_yml(
                api_source_dir=str(source), api_start_seconds=10, stack_up_timeout_seconds=60
            )
            refused(run, "born broken")
        assert {name for name, item in stack.services().items() if item} == before
        assert site_yml().succeeded().returncode == 0
        stack.wait_healthy()

    def test_application_that_serves_nobody(self, stack: Stack, source: Path) -> None:
        """CS-1: healthy by its own check, but not through nginx: what served, serves again."""
        routes = source / "compose_app" / "health" / "routes.py"
        text = routes.read_text()
        head = "    def get_health() -> Response:\n"
        assert head in text
        routes.write_text(
            text.replace(
                head,
                f"{head}        from flask import request\n\n"
                '        if request.headers.get("X-Real-IP"):\n'
                '            raise RuntimeError("not through a proxy")\n',
            )
        )
        slot = stack.api_slot()
        run = site_yml(api_source_dir=str(source), nginx_hsts_seconds=1234567)
        refused(
            run,
            "a probe of the public address failed: HTTP 500",
            "not through a proxy",
            "What ran before runs on",
        )
        stack.wait_healthy()
        assert stack.api_slot() == slot
        answer = stack.site.get("/health")
        assert answer.headers["Strict-Transport-Security"] != "max-age=1234567"
        site_yml().succeeded()

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("assert path.id % 20, 'every twentieth'", "requests ended with a 5xx"),
            ("path.id % 20 or __import__('os')._exit(1)", "so the proxy says"),
        ],
        ids=["errors", "dies"],
    )
    def test_version_that_serves_worse(
        self, stack: Stack, source: Path, line: str, reason: str
    ) -> None:
        """BM-10: healthy and probed without fault, but clients fare worse: it goes by itself."""
        routes = source / "compose_app" / "items" / "routes.py"
        text = routes.read_text()
        head = "    def get_item(path: ItemPath) -> Response:\n"
        assert head in text
        routes.write_text(text.replace(head, f"{head}        {line}\n"))
        slot = stack.api_slot()
        with asking(stack, "/api/items"):
            run = site_yml(api_source_dir=str(source), api_watch_seconds=40)
        refused(run, f"serves worse than {slot.removeprefix('api-')} did", reason)
        refused(run, "What ran before runs on")
        assert stack.api_slot() == slot

    def test_password_of_a_change_that_fails(self, stack: Stack, source: Path) -> None:
        """FS-8, FS-3: what serves keeps the secrets it was started with."""
        (source / "compose_app" / "app.py").write_text("raise RuntimeError('born broken')\n")
        secrets = {
            "secrets_values": {
                "redis_cache_password": "another-password-1",
                "postgres_app_password": "another-password-2",
            }
        }
        broken = {"api_source_dir": str(source), "api_start_seconds": 10}
        refused(site_yml(**broken, **secrets), "born broken", "What ran before runs on")
        stack.wait_healthy()
        stack.compose("restart", "redis-cache", stack.api_slot())
        stack.wait_healthy()
        assert site_yml(**secrets).succeeded().changed > 0
        stack.wait_healthy()
        assert site_yml(**secrets).succeeded().changed == 0

    @pytest.mark.parametrize(
        ("statement", "reason"),
        [
            ("SELECT broken_on_purpose()", "The migration to 9999 fails on a copy of the database"),
            (
                "SELECT 1 / (current_database() <> 'app')::int",
                'service "migrate-[a-z]+" didn\'t complete successfully',
            ),
        ],
        ids=["on the copy", "on the database itself"],
    )
    def test_migration_that_fails(
        self, stack: Stack, source: Path, statement: str, reason: str
    ) -> None:
        """FS-3: the old version serves on, on the old schema."""
        self.add_migration(source, "CREATE TABLE half_way (id integer)", statement)
        slot = stack.api_slot()
        with serving(stack):
            run = site_yml(api_source_dir=str(source))
        refused(run, "What ran before runs on")
        assert re.search(reason, " ".join(run.output.split())), run.output
        assert stack.api_slot() == slot
        assert "half_way" not in self.psql(stack, r"\dt public.*")
        assert "rehearsal" not in self.psql(stack, r"\l")
        site_yml().succeeded()
        stack.wait_healthy()

    def test_migration_that_takes_something_away(self, stack: Stack, source: Path) -> None:
        """BM-10, FS-3: noticed on a copy, by what serves; a migration that adds goes through."""
        self.add_migration(source, "ALTER TABLE items RENAME COLUMN quantity TO amount")
        slot = stack.api_slot()
        with serving(stack):
            run = site_yml(api_source_dir=str(source))
        refused(
            run,
            f"The version that serves ({slot}) does not work on a copy of the database",
            "take away in a later release what no version uses any more",
            "psycopg.errors.UndefinedColumn",
            "What ran before runs on",
        )
        assert "quantity" in self.psql(stack, r"\d items")

        before = self.psql(stack, "SELECT version_num FROM alembic_version").strip()
        self.add_migration(source, "ALTER TABLE items ADD COLUMN colour text")
        with serving(stack):
            run = site_yml(api_source_dir=str(source), postgres_rehearsal_mb=0).succeeded()
        said = "rehearsal 9999 on a copy of the database without its rows: copied in"
        assert said in " ".join(run.output.split())
        kept = Path(DIRECTORY, "state", "releases")
        newest = max(kept.iterdir(), key=lambda path: int(path.name)) / "release.json"
        record = json.loads(newest.read_text())
        assert (record["schema"], record["rehearsal"]["pending"]) == ("9999", ["9999"])
        site_yml().succeeded()
        self.psql(
            stack,
            "ALTER TABLE items DROP COLUMN colour; "
            f"UPDATE alembic_version SET version_num = '{before}'",
        )

    @staticmethod
    def psql(stack: Stack, statement: str) -> str:
        return stack.execute(
            "postgres", "psql", "--host=/run/postgresql", "--username=postgres", "-XAtq",
            "--dbname=app", "--command", statement,
        )  # fmt: skip

    @classmethod
    def add_migration(cls, source: Path, *statements: str) -> None:
        versions = source / "compose_app" / "migrations" / "versions"
        file = versions / "9999_added.py"
        file.unlink(missing_ok=True)
        lines = "".join(f"    op.execute({statement!r})\n" for statement in statements)
        file.write_text(
            '"""Added by a test."""\n\nfrom alembic import op\n\n'
            f'revision = "9999"\ndown_revision = "{cls.head(versions)}"\n\n\n'
            f"def upgrade() -> None:\n{lines}"
        )

    @staticmethod
    def head(versions: Path) -> str:
        return max(path.name.split("_")[0] for path in versions.glob("[0-9]*.py"))

    def test_change_that_works_loses_no_request(self, stack: Stack) -> None:
        """FS-3: a new setting of the API goes to the idle slot, and the switch is not seen."""
        slot = stack.api_slot()
        with serving(stack):
            run = site_yml(api_log_level="debug").succeeded()
        assert stack.api_slot() != slot
        assert re.search(r"switch +\d+ probes, 0 failed; slowest \d+ ms before", run.output)
        run = site_yml(api_log_level="debug").succeeded()
        assert run.record["changed_tasks"] == []


class TestTwoAtOnce:
    """Whoever comes second."""

    def test_is_told_who_is_first(self, stack: Stack) -> None:
        """BM-10: refused before anything is looked at; the first goes on to its end."""
        lock = Path(f"/run/compose-stack/{PROJECT}.lock")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            first = pool.submit(site_yml, redis_queue_memory_mb=144)
            wait_for("the first run's lock", lock.exists, 60, 0.05)
            second = site_yml(redis_queue_memory_mb=160)
            assert not first.done(), "the first run was over before the second began"
            refused(second, "Another run is changing this stack: site.yml by", "make unlock")
            assert second.record["changed_tasks"] == []
            first.result().succeeded()
        assert stack.one("redis-queue")["HostConfig"]["Memory"] == 144 << 20
        assert not lock.exists()
        site_yml().succeeded()


class TestInterrupted:
    """Ctrl-C; `make prove` does so at every task."""

    @pytest.mark.parametrize(
        "task",
        [
            "TASK [stack : Put the rendered configuration in place]",
            "TASK [stack : Start what is new or changed",
            "TASK [stack : Switch to the slot that is healthy",
        ],
    )
    def test_next_run_converges(self, stack: Stack, task: str) -> None:
        """CS-1, FS-3: what serves goes on serving, and running again ends where it should."""
        for _ in range(3):
            # Another change each time: after a run that went on there is nothing left to do.
            level = "info" if self.level(stack) == "warning" else "warning"
            seconds = 2_000_000 + (level == "info")
            wanted = {
                "api_log_level": level,
                "redis_queue_memory_mb": 176,
                "nginx_hsts_seconds": seconds,
            }
            run = playbook(INVENTORY, variables=wanted, interrupt_at=task)
            if run.returncode != 0:
                break
            # Ansible misses a Ctrl-C now and then.
            stack.wait_healthy()
        else:
            pytest.fail("three runs in a row ended before they could be interrupted")
        # Not /health, which tells of the Redis that may just be exchanged.
        assert stack.site.patiently("GET", "/api/items?limit=1").status_code == 200
        site_yml(**wanted).succeeded()
        stack.wait_healthy()
        assert self.level(stack) == level
        assert stack.one("redis-queue")["HostConfig"]["Memory"] == 176 << 20
        promised = stack.site.get("/health").headers["Strict-Transport-Security"]
        assert promised == f"max-age={seconds}", "nginx has not read its new configuration"
        kept = Path(DIRECTORY, "state", "releases")
        newest = kept / max((path.name for path in kept.iterdir()), key=int) / "release.json"
        assert json.loads(newest.read_text())["slot"] == stack.api_slot().removeprefix("api-")
        assert newest.with_name("nginx").joinpath("config", "nginx.conf").read_text() == (
            Path(DIRECTORY, "services", "nginx", "current", "config", "nginx.conf").read_text()
        )

    @staticmethod
    def level(stack: Stack) -> str:
        environment = stack.services()[stack.api_slot()][0]["Config"]["Env"]
        return str(dict(item.split("=", 1) for item in environment)["API_LOG_LEVEL"])


class TestFromNothingAgain:
    """CS-15."""

    def test_compose_does_not_take_the_data(self, stack: Stack) -> None:
        """CS-5: not even with the flag that removes a project's volumes."""
        mark = "/var/lib/barman/mark"
        stack.execute("backup", "sh", "-c", f"echo kept > {mark}")
        stack.compose("down", "--volumes")
        site_yml().succeeded()
        assert stack.execute("backup", "cat", mark) == "kept\n"
        stack.execute("backup", "rm", mark)

    def test_clean_takes_nothing_from_others(self, stack: Stack) -> None:
        """CS-13: an inventory that was copied may name the directories of another stack."""
        from .conftest import clean

        image = stack.one("postgres")["Image"]
        guest = stack.engine.run(
            "docker", "run", "--detach", f"--volume={SETTINGS['redis_data_dir']}/queue:/data",
            "--label=com.docker.compose.project=another", image, "sleep", "infinity",
        ).strip()  # fmt: skip
        before = stack.lives()
        try:
            run = clean()
        finally:
            stack.engine.run("docker", "rm", "--force", guest)
        refused(run, "Nothing was removed", "of another project use directories of this one")
        assert stack.lives() == before

    def test_clean_leaves_nothing_and_up_starts_afresh(self, stack: Stack) -> None:
        """CS-15, CS-13: `make clean` removes data and all; the next `make up` is healthy again."""
        from .conftest import PROJECT, clean

        clean().succeeded()
        assert stack.containers() == {}
        for kind in ("network", "volume"):
            label = f"--filter=label=com.docker.compose.project={PROJECT}"
            assert stack.engine.run("docker", kind, "ls", "--quiet", label) == ""
        assert not stack.engine.succeeds("test", "-e", DIRECTORY)
        assert not stack.engine.succeeds("test", "-e", str(SETTINGS["postgres_data_dir"]))

        site_yml().succeeded()
        assert stack.healthy()
        assert stack.site.patiently("GET", "/api/items").json()["items"] == [], "no demo data here"

    def test_wrong_answer_removes_nothing(self, stack: Stack) -> None:
        """CS-13: a slip of the hand must not cost the data."""
        before = stack.lives()
        run = playbook(INVENTORY, name="clean.yml", variables={"clean_confirm": "yes"})
        refused(run, "Nothing was removed")
        assert stack.lives() == before
