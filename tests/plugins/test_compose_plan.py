"""compose_plan: what `docker compose up` would have to do, without doing it.

The architecture's promise: check mode is truthful on an empty host and on a running one.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from plugins.modules.compose_plan import (
    ARGUMENT_SPEC,
    Container,
    PlanError,
    Service,
    add_reloads,
    decide,
    expected_services,
    make_plan,
    normalise,
    plan,
)
from tests.harness import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.plugins.conftest import Project

# --- the decision -----------------------------------------------------------------------------


def container(service: str = "api", **given: Any) -> Container:
    known: dict[str, Any] = {
        "config_hash": "hash",
        "image_ids": frozenset({"image"}),
        "state": "running",
        "exit_code": 0,
        "health": None,
    }
    return Container(service=service, **{**known, **given})


SERVICE = Service("hash", 1, "image")
ONE_SHOT = Service("hash", 1, "image", one_shot=True)


@pytest.mark.parametrize(
    ("service", "containers", "action"),
    [
        (SERVICE, [], "create"),
        (SERVICE, [container()], "keep"),
        (SERVICE, [container(health="healthy")], "keep"),
        (SERVICE, [container(config_hash="other")], "recreate"),
        (SERVICE, [container(image_ids=frozenset({"other"}))], "recreate"),
        (Service("hash", 1, None), [container(image_ids=frozenset({"other"}))], "keep"),
        (SERVICE, [container(state="exited", exit_code=137)], "start"),
        (SERVICE, [container(state="exited", exit_code=0)], "start"),
        (SERVICE, [container(state="created")], "start"),
        (SERVICE, [container(state="paused")], "start"),
        (SERVICE, [container(), container()], "remove"),
        (Service("hash", 2), [container()], "create"),
        (Service("hash", 2), [container(), container()], "keep"),
        (Service("hash", 2), [container(), container(config_hash="other")], "recreate"),
        (Service("hash", 0), [], "keep"),
        (Service("hash", 0), [container()], "remove"),
        (None, [container()], "remove"),
        (ONE_SHOT, [], "create"),
        (ONE_SHOT, [container(state="exited", exit_code=0)], "keep"),
        (ONE_SHOT, [container()], "keep"),
        (ONE_SHOT, [container(state="exited", exit_code=1)], "start"),
        (ONE_SHOT, [container(state="exited", config_hash="other")], "recreate"),
    ],
)
def test_one_service(service: Service | None, containers: list[Container], action: str) -> None:
    assert decide(service, containers)[0] == action


def test_health_is_work_to_do_but_no_reason_to_replace() -> None:
    services = dict.fromkeys(("bad", "looping", "young"), SERVICE)
    result = make_plan(
        services,
        [
            container("bad", health="unhealthy"),
            container("looping", state="restarting"),
            container("young", health="starting"),
        ],
    )
    assert set(result["services"].values()) == {"keep"}
    assert result["unhealthy"] == ["bad", "looping"]
    assert result["changed"]
    assert "bad: running, unhealthy\n" in result["diff"]["before"]


def test_nothing_to_do_is_no_change() -> None:
    result = make_plan({"api": SERVICE, "idle": Service("hash", 0)}, [container()])
    assert not result["changed"]
    assert result["services"] == {"api": "keep"}
    assert result["diff"] == {"before": "", "after": ""}


@pytest.mark.parametrize(
    ("label", "container_", "stays"),
    [
        ("1", {}, True),
        ("1", {"health": "healthy"}, True),
        ("1", {"health": "unhealthy"}, False),
        ("1", {"state": "exited"}, False),
        ("1", {"config_hash": "other"}, False),
        ("1", {"image_ids": frozenset({"other"})}, False),
        ("2", {}, False),
    ],
)
def test_who_may_stand_by(label: str, container_: dict[str, Any], stays: bool) -> None:
    """BM-10: what could take over as it is; anything else is retired."""
    services = {
        "old": Service("hash", 0, "image", labels={"secrets": "1"}),
        "new": Service("hash", 1, "image", labels={"secrets": label}),
    }
    containers = [container("new"), container("old"), container("old", **container_)]
    standby = {"services": {"old": "new", "absent": "added"}, "label": "secrets"}
    result = make_plan(services, containers, standby=standby)
    assert result["standby"] is stays
    assert result["services"]["old"] == ("keep" if stays else "remove")
    assert result["changed"] is not stays
    assert make_plan(services, containers)["standby"] is False
    assert make_plan(services, containers[:1], standby=standby)["standby"] is False


@pytest.mark.parametrize(
    ("helpers", "stays"), [([{}], True), ([], False), ([{"health": "unhealthy"}], False)]
)
def test_all_of_a_slot_stand_by_or_none(helpers: list[dict[str, Any]], stays: bool) -> None:
    """BM-10: half of a version is none."""
    idle, busy = Service("hash", 0, "image"), Service("hash", 1, "image")
    services = {"old": idle, "new": busy, "old-helper": idle, "new-helper": busy}
    containers = [container("new"), container("new-helper"), container("old")]
    containers += [container("old-helper", **changes) for changes in helpers]
    standby = {"services": {"old": "new", "old-helper": "new-helper"}, "label": "secrets"}
    result = make_plan(services, containers, standby=standby)
    assert result["standby"] is stays
    assert result["services"]["old"] == ("keep" if stays else "remove")


def test_containers_are_counted() -> None:
    """FS-3: the slot that serves keeps its size while another size starts in the other."""
    result = make_plan({"api": Service("hash", 3)}, [container(), container(), container("redis")])
    assert result["containers"] == {"api": 2, "redis": 1}


def test_what_others_need_is_recreated_alone_if_it_needs_nothing() -> None:
    """Compose stops whatever depends on a service that it recreates, unless told to ignore it."""
    services = {
        "db": Service("new", 1),
        "api": Service("new", 1, depends_on=frozenset({"db"})),
        "proxy": Service("new", 1, depends_on=frozenset({"api"})),
        "cache": Service("same", 1),
        "worker": Service("same", 1, depends_on=frozenset({"cache"})),
    }
    old = {"db": "old", "api": "old", "proxy": "old", "cache": "same", "worker": "same"}
    result = make_plan(
        services, [container(name, config_hash=digest) for name, digest in old.items()]
    )
    assert result["alone"] == ["db"]
    assert "db" in result["needed"]


def test_inactive_profiles_are_left_alone() -> None:
    result = make_plan({}, [container("debug"), container("orphan")], disabled=["debug"])
    assert result["services"] == {"debug": "keep", "orphan": "remove"}


def test_what_was_not_read_yet_is_read_by_what_stays() -> None:
    """CS-1: an interrupted run leaves no container on its old configuration."""
    services = {"kept": SERVICE, "changed": SERVICE, "current": SERVICE, "gone": Service("hash", 0)}
    containers = [
        container("kept"), container("changed", config_hash="other"), container("current")
    ]  # fmt: skip
    loads = {
        "kept": {"config": "2", "certificate": "1"},
        "changed": {"config": "2"},
        "current": {"config": "1"},
        "gone": {"config": "1"},
        "never": {"config": "1"},
    }
    loaded = {"kept": {"config": "1", "certificate": "1"}, "current": {"config": "1"}}
    result = add_reloads(make_plan(services, containers), loads, loaded)
    assert result["reload"] == ["kept"]
    assert result["unrecorded"]
    assert "kept: reload (config)\n" in result["diff"]["after"]
    same = add_reloads(make_plan(services, containers), loads, loads)
    assert (same["reload"], same["unrecorded"]) == ([], False)


def test_somebody_is_served_by_what_is_healthy() -> None:
    services = {"api": SERVICE}
    for health, serving in ((None, True), ("healthy", True), ("starting", False)):
        assert make_plan(services, [container(health=health)])["serving"] is serving
    assert not make_plan(services, [container(state="exited")])["serving"]
    assert not make_plan(services, [])["serving"]


def test_what_the_configuration_says() -> None:
    config = {
        "services": {
            "once": {"image": "x:1"},
            "daemon": {"image": "x:1", "restart": "always"},
            "many": {
                "image": "y",
                "deploy": {"replicas": 3},
                "depends_on": {
                    "once": {"condition": "service_completed_successfully"},
                    "daemon": {"condition": "service_completed_successfully"},
                },
            },
            "none": {"image": "z", "scale": 0},
        }
    }
    hashes = {name: f"hash-{name}" for name in config["services"]}
    services = expected_services(config, hashes, {"x:1": "id"})
    assert services == {
        "once": Service("hash-once", 1, "id", one_shot=True),
        "daemon": Service("hash-daemon", 1, "id"),
        "many": Service("hash-many", 3, depends_on=frozenset({"once", "daemon"})),
        "none": Service("hash-none", 0),
    }


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("redis", "docker.io/library/redis:latest"),
        ("docker.io/grafana/grafana:1", "grafana/grafana:1"),
        ("docker.io/library/nginx:1@sha256:aa", "nginx@sha256:aa"),
        ("localhost:5000/x:1@sha256:aa", "localhost:5000/x@sha256:aa"),
    ],
)
def test_names_of_one_image(left: str, right: str) -> None:
    assert normalise(left) == normalise(right)


def test_different_images_differ() -> None:
    assert normalise("localhost:5000/x") != normalise("localhost:5001/x")
    assert normalise("x:1") != normalise("x:2")


# --- a host without Docker --------------------------------------------------------------------

COMPOSE = """
services:
  web: {image: "x:1", healthcheck: {test: ["CMD", "true"]}}
  idle: {image: "x:1", scale: 0}
"""


def parameters(directory: Path, project: str = "nothing", **given: Any) -> dict[str, Any]:
    known = {name: option.get("default") for name, option in ARGUMENT_SPEC.items()}
    return {**known, "project_directory": str(directory), "project_name": project, **given}


def test_without_a_client_the_named_services_are_created(tmp_path: Path) -> None:
    result = plan(parameters(tmp_path, docker="/no/such/docker", services=["a", "b"]))
    assert result["changed"]
    assert result["services"] == {"a": "create", "b": "create"}
    assert "not installed" in result["note"]


@pytest.mark.docker
def test_without_a_daemon_every_service_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "compose.yml").write_text(COMPOSE)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    result = plan(parameters(tmp_path))
    assert result["services"] == {"web": "create"}
    assert "Docker does not answer" in result["note"]


@pytest.mark.docker
def test_a_bad_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "compose.yml").write_text("services: {web: {imagee: x}}")
    with pytest.raises(PlanError, match="imagee"):
        plan(parameters(tmp_path))


# --- a real project ---------------------------------------------------------------------------


def small_image(name: str, note: str) -> None:
    """An image of sh, sleep and true with the libraries they need, from this machine itself."""
    files = {Path(str(shutil.which(tool))).resolve() for tool in ("sh", "sleep", "true")}
    for program in list(files):
        listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True)
        words = listed.stdout.split()
        files |= {Path(word) for word in words if word.startswith("/")}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(files):
            archive.add(path.resolve(), arcname=str(path), recursive=False)
        for tool in ("sh", "sleep", "true"):
            link = tarfile.TarInfo(f"bin/{tool}")
            target = Path(str(shutil.which(tool))).resolve()
            if str(target) != f"/bin/{tool}":
                link.type, link.linkname = tarfile.SYMTYPE, str(target)
                archive.addfile(link)
    subprocess.run(
        ["docker", "import", "--change", f"LABEL note={note}", "-", name],
        input=buffer.getvalue(),
        check=True,
        capture_output=True,
        timeout=60,
    )


PROJECT = """
services:
  web:
    image: {image}
    command: [sleep, "600"]
    stop_grace_period: 0s
    environment: {{VALUE: "${{VALUE:-1}}"}}
    deploy: {{replicas: 2}}
    depends_on: {{once: {{condition: service_completed_successfully}}}}
  once:
    image: {image}
    command: ["true"]
  sick:
    image: {image}
    command: [sleep, "600"]
    stop_grace_period: 0s
    healthcheck: {{test: ["CMD", "sh", "-c", "test -e /well"], interval: 1s, retries: 1}}
  idle: {{image: {image}, scale: 0}}
  debug:
    image: {image}
    command: [sleep, "600"]
    stop_grace_period: 0s
    profiles: [debug]
networks: {{default: {{internal: true}}}}
"""


class Compose:
    """A project of its own on the machine's Docker Engine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = f"composeplan{uuid.uuid4().hex[:8]}"
        self.image = f"{self.name}:1"
        small_image(self.image, "first")
        (directory / "compose.yml").write_text(PROJECT.format(image=self.image))

    def __call__(self, *words: str) -> str:
        command = ["docker", "compose", "-p", self.name, *words]
        done = subprocess.run(
            command, cwd=self.directory, capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def docker(self, *words: str) -> str:
        done = subprocess.run(
            ["docker", *words], capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def plan(self, **given: Any) -> dict[str, Any]:
        return plan(parameters(self.directory, self.name, **given))

    def containers(self) -> list[str]:
        lines = self.docker(
            "ps", "-a", "--filter", f"label=com.docker.compose.project={self.name}",
            "--format", "{{.ID}} {{.Status}}",
        )  # fmt: skip
        return sorted(" ".join(line.split()[:2]) for line in lines.splitlines())


@pytest.fixture
def compose(tmp_path: Path) -> Iterator[Compose]:
    project = Compose(tmp_path)
    yield project
    project("--profile", "*", "down", "--remove-orphans", "--volumes", "--timeout", "0")
    ids = project.docker("image", "ls", "-q", "--filter", f"reference={project.name}")
    project.docker("image", "rm", "--force", *sorted({*ids.split()}))


def _unchanged(result: dict[str, Any]) -> dict[str, Any] | None:
    return None if result["changed"] else result


@pytest.mark.docker
def test_a_running_project(compose: Compose, project: Project) -> None:
    """From an empty host to a converged one, and every way to drift from there."""
    wanted = {"web": "create", "once": "create", "sick": "create"}
    assert compose.plan()["services"] == wanted
    compose("up", "--detach", "--remove-orphans")
    sick = wait_for("sick is unhealthy", lambda: compose.plan()["unhealthy"])
    assert sick == ["sick"]
    assert compose.plan()["changed"]
    compose.docker("exec", f"{compose.name}-sick-1", "sh", "-c", ": > /well")
    settled = wait_for("sick is well", lambda: _unchanged(compose.plan()))
    assert set(settled["services"].values()) == {"keep"}

    env = compose.directory / "other.env"
    env.write_text("VALUE=2\n")
    changed = compose.plan(env_files=[str(env)])
    assert changed["services"] == {"web": "recreate", "once": "keep", "sick": "keep"}
    assert changed["reasons"] == {"web": "its configuration changed"}

    before = compose.containers()
    through_ansible = project.tasks(
        {
            "compose_plan": {
                "project_directory": str(compose.directory),
                "project_name": compose.name,
                "env_files": [str(env)],
            }
        },
        options=("--check", "--diff"),
    )
    assert through_ansible.last["services"] == changed["services"]
    assert through_ansible.last["diff"]["after"] == "web: recreate (its configuration changed)\n"
    assert compose.containers() == before

    compose("--profile", "debug", "up", "--detach", "--no-deps", "debug")
    inactive = compose.plan()
    assert (inactive["changed"], inactive["services"]["debug"]) == (False, "keep")
    assert compose.plan(profiles=["debug"])["services"]["debug"] == "keep"

    compose.docker("rm", "--force", f"{compose.name}-web-2")
    assert compose.plan()["services"]["web"] == "create"
    # Compose hashes a service without its dependencies here, so the next plain `up` recreates it.
    compose("up", "--detach", "--no-deps", "web")
    assert compose.plan()["services"]["web"] == "recreate"
    compose("up", "--detach")
    compose.docker("kill", f"{compose.name}-web-1")
    assert compose.plan()["services"]["web"] == "start"

    small_image(compose.image, "second")
    replaced = compose.plan()
    assert replaced["services"]["sick"] == "recreate"
    assert replaced["reasons"]["sick"] == "its image changed"

    file = compose.directory / "compose.yml"
    file.write_text(json.dumps({"services": {"other": {"image": compose.image}}}))
    gone = compose.plan()["services"]
    assert gone == dict.fromkeys(("web", "once", "sick", "debug"), "remove") | {"other": "create"}
    file.write_text(PROJECT.format(image=compose.image))


READERS = """
services:
  reader: &reader
    image: {image}
    command: [sh, -c, "trap 'echo read' HUP; while :; do sleep 0.05; done"]
    restart: unless-stopped
    stop_grace_period: 0s
    deploy: {{replicas: 2}}
  other: {{<<: *reader, deploy: {{replicas: 1}}}}
networks: {{default: {{internal: true}}}}
"""


@pytest.mark.docker
def test_reloading(compose: Compose, project: Project) -> None:
    """CS-1: each that is behind reads once, and it is remembered until something differs."""
    (compose.directory / "compose.yml").write_text(READERS.format(image=compose.image))
    compose("up", "--detach")
    record = compose.directory / "state" / "loaded.json"

    def read(service: str) -> int:
        return compose("logs", "--no-log-prefix", service).count("read")

    def reload(loads: dict[str, Any], *options: str, started: tuple[str, ...] = ()) -> Any:
        arguments = {
            "project_name": compose.name,
            "record": str(record),
            "loads": loads,
            "started": list(started),
        }
        return project.tasks({"service_reload": arguments}, options=options).last

    first = {"reader": {"config": "1"}, "other": {"config": "1"}, "absent": {"config": "1"}}
    rehearsed = reload(first, "--check")
    assert (rehearsed["changed"], rehearsed["reloaded"]) == (True, ["other", "reader"])
    assert not record.exists()
    assert reload(first, started=("other",))["reloaded"] == ["reader"]
    wait_for("both containers read", lambda: read("reader") == 2)
    assert read("other") == 0
    assert json.loads(record.read_text()) == {"reader": {"config": "1"}, "other": {"config": "1"}}
    assert not reload(first)["changed"]

    # Parts that another playbook speaks of stay.
    assert reload({"other": {"certificate": "a"}})["reloaded"] == ["other"]
    wait_for("the other one read", lambda: read("other") == 1)
    assert json.loads(record.read_text())["other"] == {"config": "1", "certificate": "a"}
    assert compose.plan(loads=first, record=str(record))["services"]["other"] == "keep"
    record.write_text("half a rec")
    assert reload(first)["reloaded"] == ["other", "reader"]
    wait_for("both read again", lambda: read("reader") == 4)

    def process() -> int:
        container = f"{compose.name}-other-1"
        return int(compose.docker("inspect", "--format={{.State.Pid}}", container))

    # The engine must not have taken the signal for somebody's wish that it stop.
    died = process()
    os.kill(died, signal.SIGKILL)
    wait_for("the other one started again", lambda: process() not in (0, died), 20)
