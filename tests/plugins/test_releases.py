"""Releases as they are kept, and made ready to run again in whatever slot is free."""

from __future__ import annotations

import importlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import ansible.module_utils
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import ROOT

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from .conftest import Outcome, Project

ansible.module_utils.__path__.append(str(ROOT / "plugins" / "module_utils"))
releases: ModuleType = importlib.import_module("plugins.module_utils.releases")
TreeError = importlib.import_module("ansible.module_utils.trees").TreeError

SecretFiles = importlib.import_module("plugins.module_utils.secret_store").SecretFiles
release_due = importlib.import_module("plugins.modules.compose_plan").release_due

SLOTS = ["blue", "green"]


class Host:
    """A directory in which versions of an API run in turns, as the roles would have it."""

    def __init__(self, path: Path) -> None:
        self.kept = path / "releases"
        self.services = path / "services"
        self.serving: str | None = None
        self.runs: dict[str, str] = {}

    def write(self, name: str, text: str) -> None:
        file = self.services / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def deploy(self, version: str, setting: str = "on") -> int:
        """What site.yml leaves behind, with the version in the slot that was idle."""
        if self.serving is None or self.runs[self.serving] != version:
            self.serving = "green" if self.serving == "blue" else "blue"
            self.runs[self.serving] = version
        for slot in SLOTS:
            here = self.runs.get(slot, version)
            self.write(f"api/current/{slot}.yml", f"api-{slot}: {here}\n")
        spare = "green" if self.serving == "blue" else "blue"
        self.write("api/current/spare.yml", f"api-{spare}: {version}\n")
        self.write("nginx/current/nginx.conf", f"{setting}\n")
        scales = [
            f"{what}_{slot.upper()}_SCALE={count if slot == self.serving else 0}\n"
            for slot in SLOTS
            for what, count in (("MIGRATE", 1), ("API", 3), ("QUERY", 2))
        ]
        self.write("stack/current/.env", "PROJECT=web\n" + "".join(scales))
        secrets = {"secrets": {"old": {"file": "/old"}, version: {"file": f"/{version}"}}}
        self.write("stack/current/secrets.json", json.dumps(secrets))
        facts = {"slot": self.serving, "version": version, "setting": setting, "data": {}}
        return int(releases.record(self.kept, self.services, ["api", "nginx", "stack"], facts))

    def back(self, number: int, **secrets: str) -> Any:
        return releases.restore(self.kept, number, self.services, SLOTS, self.serving, secrets)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def text(restored: Any, name: str, file: str) -> str:
    content: bytes = restored.trees[name][file].content
    return content.decode()


def test_records_are_whole_and_numbered(host: Host) -> None:
    """BM-10: what is rendered, and whence, when and why."""
    assert [host.deploy("one"), host.deploy("two")] == [1, 2]
    record = releases.load(host.kept, 2)
    assert (record["number"], record["version"], record["slot"]) == (2, "two", "green")
    assert set(record["trees"]) == {"api", "nginx", "stack"}
    assert (host.kept / "1" / "api" / "blue.yml").read_text() == "api-blue: one\n"


def test_back_to_the_release_before(host: Host) -> None:
    """BM-10: into the slot that is free, with the settings of then."""
    host.deploy("one", "on")
    host.deploy("two", "off")
    restored = host.back(1)
    assert (restored.target, restored.stands_by) == ("blue", True)
    assert text(restored, "api", "blue.yml") == "api-blue: one\n"
    assert text(restored, "api", "green.yml") == "api-green: two\n"
    assert text(restored, "nginx", "nginx.conf") == "on\n"
    assert "API_BLUE_SCALE=3\n" in text(restored, "stack", ".env")
    assert "API_GREEN_SCALE=0\n" in text(restored, "stack", ".env")
    # The slot that served until then is not started without a secret of its own.
    assert json.loads(text(restored, "stack", "secrets.json"))["secrets"] == {
        name: {"file": f"/{name}"} for name in ("old", "one", "two")
    }


def test_back_with_the_secrets_of_today(host: Host) -> None:
    """BM-10, FS-8: servers may refuse what was then, and it may be known to a thief."""
    host.deploy("0123456789ab", "app_0123456789ab")
    amend(host, 1, secrets={"password": "0123456789ab", "of_a_room_that_went": "fedcba987654"})
    host.deploy("two", "app_111111111111")
    restored = host.back(1, password="111111111111", unknown_then="222222222222")
    assert text(restored, "nginx", "nginx.conf") == "app_111111111111\n"
    secrets = json.loads(text(restored, "stack", "secrets.json"))["secrets"]
    assert secrets["111111111111"] == {"file": "/111111111111"}
    # It differs from what stands by, which is not let serve at once.
    assert restored.stands_by is False
    assert host.back(1).stands_by is True


def test_its_own_slot_is_taken(host: Host) -> None:
    """BM-10: two releases back, what served there has made room for what serves now."""
    host.deploy("one")
    host.deploy("two")
    host.deploy("three")
    restored = host.back(1)
    assert (restored.target, restored.stands_by) == ("green", False)
    assert text(restored, "api", "green.yml") == "api-green: one\n"
    assert text(restored, "api", "blue.yml") == "api-blue: three\n"
    assert text(restored, "api", "spare.yml") == "api-blue: one\n"
    environment = text(restored, "stack", ".env")
    assert "MIGRATE_GREEN_SCALE=1\nAPI_GREEN_SCALE=3\nQUERY_GREEN_SCALE=2\n" in environment
    assert "MIGRATE_BLUE_SCALE=0\nAPI_BLUE_SCALE=0\nQUERY_BLUE_SCALE=0\n" in environment


def test_what_differs_is_not_the_application(host: Host) -> None:
    """BM-10: then it goes on serving, and nothing is switched."""
    host.deploy("one", "on")
    host.deploy("one", "off")
    restored = host.back(1)
    assert restored.target == host.serving == "blue"
    assert restored.stands_by is False
    assert text(restored, "nginx", "nginx.conf") == "on\n"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["on", "off"])), min_size=2))
@settings(max_examples=60, deadline=None)
def test_any_history_any_way_back(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, str]]
) -> None:
    """BM-10: whatever was deployed, each release comes back as it was, beside what serves."""
    host = Host(tmp_path_factory.mktemp("host"))
    for version, setting in history:
        host.deploy(version, setting)
    now = host.runs[str(host.serving)]
    for number, (version, setting) in enumerate(history, 1):
        restored = host.back(number)
        slot = str(restored.target)
        assert text(restored, "api", f"{slot}.yml") == f"api-{slot}: {version}\n"
        assert text(restored, "api", f"{host.serving}.yml") == f"api-{host.serving}: {now}\n"
        assert text(restored, "nginx", "nginx.conf") == f"{setting}\n"
        assert (slot == host.serving) == (version == now)


def test_nothing_serves(host: Host) -> None:
    """BM-10: after `make down`, say, the slot is the one it had."""
    host.deploy("one")
    host.deploy("two")
    host.serving = None
    assert host.back(1).target == "blue"


def test_a_release_that_was_changed(host: Host) -> None:
    """BM-10: is refused, with the place."""
    host.deploy("one")
    (host.kept / "1" / "nginx" / "nginx.conf").write_text("something else\n")
    with pytest.raises(TreeError, match=r"release 1 is not as it was recorded: .*/1/nginx"):
        host.back(1)


def test_a_release_that_is_not_there(host: Host) -> None:
    """BM-10: is refused, and the message lists those that are."""
    host.deploy("one")
    host.deploy("two")
    with pytest.raises(TreeError, match=r"release 7 cannot be read .*kept are: 1, 2$"):
        host.back(7)


def test_interrupted_record(host: Host) -> None:
    """BM-10: half a release is none, and the next takes its number."""
    host.deploy("one")
    (host.kept / ".2" / "api").mkdir(parents=True)
    assert releases.numbers(host.kept) == [1]
    assert host.deploy("two") == 2


def test_pruned_by_count(host: Host) -> None:
    """BM-10: the newest stay, and never less than two."""
    for version in "abcdef":
        host.deploy(version)
    gone = releases.prune(host.kept, 3)
    assert [record["version"] for record in gone] == ["a", "b", "c"]
    assert releases.numbers(host.kept) == [4, 5, 6]
    releases.prune(host.kept, 0)
    assert releases.numbers(host.kept) == [5, 6]
    assert host.deploy("g") == 7


@pytest.fixture
def staged(project: Project, host: Host) -> Any:
    """Run the module on the host's releases."""
    sockets = project.root / "sockets"
    sockets.mkdir()
    secrets = project.root / "secrets"
    secrets.mkdir()

    def stage(**params: Any) -> Outcome:
        (sockets / "active").unlink(missing_ok=True)
        (sockets / "active").symlink_to(str(host.serving))
        return project.tasks(
            {
                "release_stage": {
                    "path": str(host.kept),
                    "services": str(host.services),
                    "stage": str(project.stage),
                    "sockets": str(sockets),
                    "slots": SLOTS,
                    "secrets": str(secrets),
                    "loaded": str(project.root / "loaded.json"),
                    **params,
                }
            }
        )

    return stage


def amend(host: Host, number: int, **facts: Any) -> None:
    file = host.kept / str(number) / "release.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **facts}))


def test_module_stages_the_release_before(project: Project, host: Host, staged: Any) -> None:
    """BM-10: as render_tree would have, and keeps of what is loaded what is no configuration."""
    loads = {"nginx": {"config": "then", "certificate": "old"}}
    for number, version in enumerate(("one", "two"), 1):
        host.deploy(version)
        amend(host, number, images={}, secrets={}, loads=loads)
    (project.root / "loaded.json").write_text(
        json.dumps({"nginx": {"config": "now", "certificate": "renewed"}})
    )
    answer = staged().last
    assert (answer["release"]["secrets"], answer["former"]) == ({}, [])
    assert (answer["release"]["number"], answer["latest"]["number"]) == (1, 2)
    assert answer["stands_by"] is True
    assert (answer["serving"], answer["target"]) == ("green", "blue")
    assert answer["loads"] == {"nginx": {"config": "then", "certificate": "renewed"}}
    assert (project.stage / "api" / "current" / "blue.yml").read_text() == "api-blue: one\n"


def test_module_names_todays_secrets(project: Project, host: Host, staged: Any) -> None:
    """BM-10, FS-8: by their present versions; an earlier one is told, to be taken away."""
    store = SecretFiles(project.root / "secrets", check_mode=False)
    store.prepare()
    store.ensure("password", "as-it-was-then")
    for version in ("one", "two"):
        number = host.deploy(version)
        amend(host, number, images={}, loads={}, secrets={"password": store.versions["password"]})
    store.ensure("password", "as-it-is-today")
    answer = staged().last
    assert answer["release"]["secrets"] == store.versions
    assert answer["former"] == ["password"]


def test_module_refuses_what_cannot_run(project: Project, host: Host, staged: Any) -> None:
    """BM-10: before anything is staged, naming what is gone."""
    host.deploy("one")
    assert "There is no release before the present one" in staged().last["msg"]
    host.deploy("two")
    needs = {"images": {"api": "nowhere/api:1"}, "secrets": {"password": "abc"}, "loads": {}}
    amend(host, 1, **needs)
    message = staged(number=1).last["msg"]
    assert "image nowhere/api:1, secret password is gone" in message
    assert "Nothing was changed" in message
    assert not project.stage.exists()


def test_module_refuses_where_the_data_has_moved(host: Host, staged: Any) -> None:
    """BM-10: an earlier release would serve what was left in the directory of then."""
    host.deploy("one")
    host.deploy("two")
    needs: dict[str, Any] = {"images": {}, "secrets": {}, "loads": {}}
    amend(host, 1, **needs, data={"postgres_data_dir": "", "redis_data_dir": ""})
    amend(host, 2, **needs, data={"postgres_data_dir": "/srv/pg", "redis_data_dir": ""})
    message = staged().last["msg"]
    assert "kept its data elsewhere (postgres_data_dir was a volume and is /srv/pg)" in message
    assert "Nothing was changed" in message
    amend(host, 1, data={"postgres_data_dir": "/srv/pg", "redis_data_dir": ""})
    # The record of before there was another version does not name it.
    there = {"postgres_data_dir": "/srv/pg", "redis_data_dir": ""}
    amend(host, 2, data={**there, "postgres_version": 18})
    assert "postgres_version was 17 and is 18" in staged().last["msg"]
    amend(host, 2, data={**there, "postgres_version": 17})
    assert staged().last["release"]["number"] == 1


def test_a_release_that_was_not_kept_is_due(host: Host, tmp_path: Path) -> None:
    """BM-10: a run that was killed before its end leaves that to the next."""
    stage = tmp_path / "stage"
    activation = {"stage": str(stage), "names": ["api", "nginx", "stack"]}

    def due() -> bool:
        shutil.rmtree(stage, ignore_errors=True)
        shutil.copytree(host.services, stage)
        return bool(release_due(host.kept, activation))

    host.deploy("one")
    assert due() is False
    host.write("nginx/current/nginx.conf", "another\n")
    assert due() is True
    shutil.rmtree(host.kept)
    assert due() is True


def test_damaged_record(host: Host, tmp_path: Path) -> None:
    """BM-10: it is not gone back to, and stands in the way of no other release."""
    host.deploy("one")
    stage = tmp_path / "stage"
    shutil.copytree(host.services, stage)
    (host.kept / "1" / "release.json").write_text('{"number": 1, "tre')
    assert release_due(host.kept, {"stage": str(stage), "names": ["api", "nginx", "stack"]})
    with pytest.raises(TreeError, match="release 1 cannot be read"):
        host.back(1)
    assert host.deploy("two") == 2
    assert [each["number"] for each in releases.readable(host.kept, [1, 2])] == [2]
    host.deploy("three")
    assert releases.prune(host.kept, 2) == []
    assert releases.numbers(host.kept) == [2, 3]


@pytest.mark.parametrize(
    "content", [b'{"number": 1, "tre', b"", b"[]", b"null", b'{"number": 2}', b"\xff", None]
)
def test_damaged_record_hides_no_other(project: Project, host: Host, content: bytes | None) -> None:
    """BM-10: it is named, with its path; the others are listed, the newest first."""
    for version in ("one", "two", "three"):
        host.deploy(version)
    record = host.kept / "2" / "release.json"
    record.unlink() if content is None else record.write_bytes(content)
    answer = project.tasks({"release_list": {"path": str(host.kept)}}).last
    assert [each["version"] for each in answer["releases"]] == ["three", "one"]
    (damaged,) = answer["damaged"]
    assert (damaged["number"], damaged["path"]) == (2, str(record))
    assert damaged["fault"]
    assert (answer["changed"], answer["latest"]) == (False, 3)


def test_nothing_to_list(project: Project, tmp_path: Path) -> None:
    """BM-10: before the first release."""
    answer = project.tasks({"release_list": {"path": str(tmp_path / "none")}}).last
    assert (answer["releases"], answer["damaged"], answer["latest"]) == ([], [], 0)
