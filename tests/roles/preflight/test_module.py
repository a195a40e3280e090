"""What the preflight's module makes of hosts that are not at hand."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from ansible.module_utils import docker_host, firewall, listeners

from plugins.modules import preflight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


Answers = dict[str, Any]


class FakeEngine:
    """Answers like a Docker Engine."""

    def __init__(self, path: Path, answers: Answers) -> None:
        self.path = path
        self.answers = answers
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                self._server.close()
                return
            with connection:
                target = connection.recv(65536).split()[1].decode().split("?")[0]
                found = target in self.answers
                body = json.dumps(self.answers.get(target, {})).encode()
                status = b"200 OK" if found else b"404 Not Found"
                connection.sendall(
                    b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)
                )

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeEngine]]:
    """Puts an engine with the given answers in the place of this machine's."""
    started = []
    path = tmp_path / "docker.sock"
    original = docker_host.Engine.__init__

    def init(self: Any, _path: str = "", timeout: float = 2) -> None:
        original(self, str(path), timeout)

    monkeypatch.setattr(docker_host.Engine, "__init__", init)
    monkeypatch.setattr(docker_host, "SOCKET", str(path))
    monkeypatch.setattr(docker_host, "DAEMON_JSON", str(tmp_path / "daemon.json"))
    monkeypatch.setattr(docker_host, "PID_FILE", str(tmp_path / "docker.pid"))

    def start(*containers: dict[str, Any], **info: Any) -> FakeEngine:
        answers = {
            "/info": {
                "ServerVersion": "26.1.5",
                "DockerRootDir": str(tmp_path),
                "ContainersRunning": len(containers),
                "LiveRestoreEnabled": False,
                "LoggingDriver": "json-file",
                "SecurityOptions": ["name=seccomp,profile=builtin"],
                **info,
            },
            "/containers/json": list(containers),
            "/networks/bridge": {
                "Options": {"com.docker.network.bridge.host_binding_ipv4": "0.0.0.0"}
            },
        }
        started.append(FakeEngine(path, answers))
        return started[-1]

    yield start
    for item in started:
        item.close()


def container(name: str, port: int, **labels: str) -> dict[str, Any]:
    return {
        "Id": "a" * 64,
        "Names": [f"/{name}"],
        "Labels": {f"com.docker.compose.project{k}": v for k, v in labels.items()},
        "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": port, "Type": "tcp"}],
    }


def project(name: str, directory: str) -> dict[str, Any]:
    """A container of a Compose project."""
    item = container(f"{name}-nginx-1", 8123)
    item["Labels"] = {
        "com.docker.compose.project": name,
        "com.docker.compose.project.working_dir": directory,
    }
    return item


def look(tmp_path: Path, **changes: Any) -> preflight.Preflight:
    params: dict[str, Any] = {
        "stack_dir": str(tmp_path / "stack"),
        "stack_project": "shop",
        "stack_entries": ["services"],
        "unfinished": "",
        "ports": [],
        "postgres_major": 0,
        "postgres_data_dir": "",
        "postgres_volume": "",
        "distributions": [],
        "architectures": [],
        "python_min": "3.11",
        "engine_min": "25",
        "compose_min": "2.20.3",
        "memory_mb": 0,
        "disk_stack_mb": 0,
        "disk_docker_mb": 0,
        "disk_images_mb": 0,
        "measurements_mb": 0,
        "measurements_dir": "",
        "images": [],
        "clock_skew_seconds": 300,
        "controller_time": 0,
        "daemon_options": {},
        "packages": [],
        "sockets": None,
        "certificate": None,
        "secrets": None,
        "directories": [],
        "volumes": [],
        "firewall": None,
        "marks": {},
        "become_error": "",
        **changes,
    }
    found = preflight.Preflight(params)
    found.run()
    return found


def causes(found: preflight.Preflight) -> str:
    return "\n".join(item["cause"] for item in found.problems)


PORT = [{"variable": "nginx_http_port", "port": 8123, "address": "127.0.0.1"}]


def test_port_of_a_container(engine: Callable[..., FakeEngine], tmp_path: Path) -> None:
    """Bad input: a port in use, said by what, without a process to be seen."""
    engine(container("blog", 8123))
    assert "in use by the container blog" in causes(look(tmp_path, ports=PORT))


def test_port_of_our_own_container(engine: Callable[..., FakeEngine], tmp_path: Path) -> None:
    engine(project("shop", str(tmp_path / "stack")))
    assert look(tmp_path, ports=PORT).problems == []


def test_project_of_the_same_name(engine: Callable[..., FakeEngine], tmp_path: Path) -> None:
    engine(project("shop", "/srv/other"))
    assert "named 'shop' has containers on this host, from /srv/other" in causes(look(tmp_path))


@pytest.mark.parametrize(("stage", "refused"), [("restoring", True), ("starting", False)])
def test_recovery_that_has_not_ended(
    engine: Callable[..., FakeEngine], tmp_path: Path, stage: str, refused: bool
) -> None:
    """Bad input: what is deployed over it would be replaced when it goes on."""
    engine()
    marker = tmp_path / "marker"
    marker.write_text(f"{stage}\n")
    found = causes(look(tmp_path, unfinished=str(marker)))
    assert ("A recovery of shop on this host has not ended" in found) is refused


def test_old_engine(engine: Callable[..., FakeEngine], tmp_path: Path) -> None:
    engine(ServerVersion="20.10.24+dfsg1")
    assert "Docker Engine 20.10.24+dfsg1 is too old" in causes(look(tmp_path))


def test_engine_that_does_not_answer(engine: Callable[..., FakeEngine], tmp_path: Path) -> None:
    """Bad input: Docker present but unreachable."""
    mute = socket.socket(socket.AF_UNIX)
    mute.bind(str(tmp_path / "docker.sock"))
    mute.listen()
    with mute:
        found = look(tmp_path)
    assert found.facts["docker"]["state"] == "unreachable"
    assert "cannot be used" in causes(found)


@pytest.mark.parametrize(
    ("address", "elsewhere"),
    [
        ("unix:///nonexistent/docker.sock", True),
        ("tcp://build.example:2376", True),
        ("ssh://root@build.example", True),
        ("unix:///var/run/docker.sock", False),
        ("", False),
    ],
)
def test_docker_host(
    engine: Callable[..., FakeEngine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    elsewhere: bool,
) -> None:
    """Bad input: an environment in which docker asks another engine than the one looked at."""
    engine()
    monkeypatch.setenv("DOCKER_HOST", address)
    assert (f"DOCKER_HOST is '{address}'" in causes(look(tmp_path))) is elsewhere


def test_engine_that_does_not_come_up(engine: Callable[..., FakeEngine], tmp_path: Path) -> None:
    """systemd listens in the daemon's place and drops whoever connects: start it, and see."""

    def drop() -> None:
        connection, _ = server.accept()
        # Closed with something unread, a connection is reset.
        connection.close()

    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "docker.sock"))
    server.listen()
    with server:
        thread = threading.Thread(target=drop)
        thread.start()
        found = look(tmp_path)
        thread.join()
    assert found.facts["docker"]["state"] in {"stopped", "absent"}
    assert found.problems == []


def test_broken_daemon_json(engine: Callable[..., FakeEngine], tmp_path: Path) -> None:
    engine()
    (tmp_path / "daemon.json").write_text("{,}")
    assert "cannot be used" in causes(look(tmp_path))


def test_settings_that_wait_for_a_restart(
    engine: Callable[..., FakeEngine], tmp_path: Path
) -> None:
    wanted = {"ip": "127.0.0.1", "no-new-privileges": True, "log-driver": "json-file"}
    (tmp_path / "daemon.json").write_text(json.dumps({**wanted, "foreign": 1}))
    engine()
    docker = look(tmp_path, daemon_options=wanted).facts["docker"]
    assert docker["daemon_options_current"] is True
    assert docker["restart_pending"] == ["ip", "no-new-privileges"]


def test_merge_keeps_what_others_wrote() -> None:
    existing = {
        "mtu": 1400,
        "debug": True,
        "log-opts": {"tag": "x"},
        "default-network-opts": {"overlay": {"a": "b"}},
    }
    wanted = {
        "debug": None,
        "log-opts": {"max-file": "3"},
        "default-network-opts": {"bridge": {"c": "d"}},
    }
    assert docker_host.merge_daemon_options(existing, wanted) == {
        "mtu": 1400,
        "log-opts": {"max-file": "3"},
        "default-network-opts": {"overlay": {"a": "b"}, "bridge": {"c": "d"}},
    }


def test_room_where_containerd_keeps_the_images(
    engine: Callable[..., FakeEngine], tmp_path: Path
) -> None:
    """Bad input: engines from 29 on leave images to containerd, in a directory of its own."""
    started = engine()
    assert "/var/lib/containerd" not in look(tmp_path).facts["disk"]
    started.answers["/info"] |= {"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}
    found = look(tmp_path, disk_images_mb=10**9, images=["compose-stack/api"])
    assert found.facts["disk"]["/var/lib/containerd"]["needed_mb"] == 10**9
    assert found.facts["disk"][str(tmp_path)]["needed_mb"] == 0
    assert "its images (/var/lib/containerd)" in causes(found)


def test_images_need_room_only_once(engine: Callable[..., FakeEngine], tmp_path: Path) -> None:
    """Bad input: too little disk, for what is still to be made."""
    started = engine()
    needs = {"disk_images_mb": 10**9, "images": ["compose-stack/api"]}
    assert "1000000000 MiB are needed" in causes(look(tmp_path, **needs))
    others = [
        {"RepoTags": ["compose-stack/postgres:1"], "RepoDigests": ["redis@sha256:00"]},
        {"RepoTags": ["<none>:<none>"], "RepoDigests": None},
    ]
    started.answers["/images/json"] = others
    assert "1000000000 MiB are needed" in causes(look(tmp_path, **needs))
    for kind, name in (("RepoTags", "api:1"), ("RepoDigests", "api@x:0")):
        names = {kind: [f"compose-stack/{name}"]}
        started.answers["/images/json"] = [*others, names]
        assert look(tmp_path, **needs).problems == []
    assert look(tmp_path).facts["docker"]["images"] == [
        "compose-stack/api@x:0", "compose-stack/postgres:1", "redis@sha256:00",
    ]  # fmt: skip


def test_sockets(engine: Callable[..., FakeEngine], tmp_path: Path) -> None:
    """FS-3: what serves, and whether its sockets are in order."""
    engine()
    assert "sockets" not in look(tmp_path).facts
    path = tmp_path / "run" / "sockets"
    wanted = {"path": str(path), "slots": ["blue", "green"], "owner": 10001, "group": 10001}
    nothing: dict[str, Any] = {"active": None, "ready": False, "secrets": {"blue": {}, "green": {}}}
    assert look(tmp_path, sockets=wanted).facts["sockets"] == nothing
    for slot in ("blue", "green"):
        (path / slot).mkdir(parents=True)
        os.chown(path / slot, 10001, 10001)
        (path / slot).chmod(0o750)
    (path / "active").symlink_to("green")
    assert look(tmp_path, sockets=wanted).facts["sockets"] == {
        **nothing,
        "active": "green",
        "ready": True,
    }
    (path / "blue").chmod(0o755)
    assert look(tmp_path, sockets=wanted).facts["sockets"]["ready"] is False


def test_secrets_of_the_slots(engine: Callable[..., FakeEngine], tmp_path: Path) -> None:
    """BM-10: what a slot that is left as it is goes on to need, whatever the tree knows."""
    engine()
    wanted = {"path": str(tmp_path), "slots": ["blue", "green"], "owner": 0, "group": 0}
    api, stack = (tmp_path / "stack/services" / name / "current" for name in ("api", "stack"))
    for directory in (api, stack):
        directory.mkdir(parents=True)
    (api / "blue.yml").write_text("  x:\n    secrets: [one, two]\n  y:\n    secrets: [three]\n")
    (api / "green.yml").write_text("  x:\n    secrets: [four]\n")
    known = {name: {"file": f"/{name}"} for name in ("one", "three", "other")}
    (stack / "secrets.json").write_text(json.dumps({"secrets": known}))
    assert look(tmp_path, sockets=wanted).facts["sockets"]["secrets"] == {
        "blue": {"one": {"file": "/one"}, "three": {"file": "/three"}},
        "green": {},
    }


def test_marks(engine: Callable[..., FakeEngine], tmp_path: Path) -> None:
    """FS-7: what an earlier run has noted, such as that the key of the copy was shown."""
    engine()
    (tmp_path / "shown").write_text("1a2b\n")
    wanted = {"one": str(tmp_path / "shown"), "other": str(tmp_path / "absent")}
    assert look(tmp_path, marks=wanted).facts["marks"] == {"one": "1a2b", "other": ""}


def test_directories(engine: Callable[..., FakeEngine], tmp_path: Path) -> None:
    """BM-15: those that are there with the right owner and mode."""
    engine()
    names = ("right", "absent", "file", "mode", "owner")
    wanted = [{"path": str(tmp_path / name), "user": "70:71", "mode": "0700"} for name in names]
    for name in names:
        if name == "file":
            (tmp_path / name).touch()
        elif name != "absent":
            (tmp_path / name).mkdir()
        if name != "absent":
            (tmp_path / name).chmod(0o750 if name == "mode" else 0o700)
            os.chown(tmp_path / name, 70, 70 if name == "owner" else 71)
    assert look(tmp_path, directories=wanted).facts["directories"] == [str(tmp_path / "right")]


def test_live_trees(engine: Callable[..., FakeEngine], tmp_path: Path) -> None:
    """CS-1: what the rooms have live, for those that would render the same; odd ones not."""
    engine()
    assert look(tmp_path).facts["trees"] == {}
    services = tmp_path / "stack" / "services"
    for name in ("redis", "nginx"):
        (services / name / "trees" / "one").mkdir(parents=True)
        (services / name / "trees" / "one" / "file").write_text("a")
        (services / name / "current").symlink_to("trees/one")
    found = look(tmp_path).facts["trees"]
    assert found.keys() == {str(services / "redis"), str(services / "nginx")}
    assert len(set(found.values())) == 1
    (services / "redis" / "current" / "file").chmod(0o600)
    (services / "nginx" / "current").unlink()
    changed = look(tmp_path).facts["trees"]
    assert changed.keys() == {str(services / "redis")}
    assert changed != {str(services / "redis"): found[str(services / "redis")]}


def test_measurements_that_do_not_fit(engine: Callable[..., FakeEngine], tmp_path: Path) -> None:
    """UT-10, bad input: a retention larger than the disk."""
    engine()
    asked = {"measurements_mb": 10**9, "measurements_dir": str(tmp_path / "later")}
    assert "the whole file system of" in causes(look(tmp_path, **asked))
    assert look(tmp_path, **{**asked, "measurements_mb": 64}).problems == []


def test_no_root_and_no_sudo(
    engine: Callable[..., FakeEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad input."""
    engine()
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    monkeypatch.setattr("shutil.which", lambda *_args, **_options: None)
    assert "is not root, and there is no sudo on the host" in causes(look(tmp_path))


def test_clock(engine: Callable[..., FakeEngine], tmp_path: Path) -> None:
    engine()
    assert "behind the controller's" in causes(look(tmp_path, controller_time=2e10))


FIREWALL = {"enabled": True, "project": "shop", "inside": ["docker*", "br-*", "eth1"]}


def test_firewall_of_another_stack(
    engine: Callable[..., FakeEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BM-12: one host, one firewall."""
    engine()
    monkeypatch.setattr(firewall, "RULES", tmp_path / "firewall.nft")
    monkeypatch.setattr(firewall, "refusal", lambda: 0)
    for keeper, ours in (("blog", False), ("shop", True)):
        firewall.RULES.write_text(f"# The firewall of {keeper}. More.\ntable inet compose-stack\n")
        found = look(tmp_path, firewall=FIREWALL)
        assert ("is the stack blog's" in causes(found)) is not ours
        assert found.facts["firewall"]["ours"] is ours


def test_kernel_without_nftables(
    engine: Callable[..., FakeEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BM-12: and nobody is asked where no firewall is wanted."""
    engine()
    monkeypatch.setattr(firewall, "refusal", lambda: errno.EINVAL)
    assert "the kernel has no nftables" in causes(look(tmp_path, firewall=FIREWALL))
    assert look(tmp_path, firewall={**FIREWALL, "enabled": False}).problems == []


def test_network_card_behind_a_name_like_dockers(
    engine: Callable[..., FakeEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BM-12: it would be a way in. One that is named in full is meant."""
    engine()
    monkeypatch.setattr(firewall, "refusal", lambda: 0)
    monkeypatch.setattr(firewall, "INTERFACES", tmp_path / "net")
    for name in ("eth0/device", "eth1/device", "br-lan/brif/eth0", "br-0123456789ab/brif/veth1"):
        (tmp_path / "net" / name).mkdir(parents=True)
    found = causes(look(tmp_path, firewall=FIREWALL))
    assert found.startswith("By its name br-lan would pass for one of Docker's bridges")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0100007F", "127.0.0.1"),
        ("00000000000000000000000001000000", "::1"),
        ("0000000000000000FFFF00000100007F", "127.0.0.1"),
    ],
)
def test_addresses_of_the_kernels_table(text: str, address: str) -> None:
    assert listeners.decode_address(text) == address


def test_versions() -> None:
    assert docker_host.version_tuple("2.26.1-4") == (2, 26, 1)
    assert docker_host.version_tuple("v2.9") < docker_host.version_tuple("2.20.3")
