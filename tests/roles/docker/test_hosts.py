"""The docker role on bare machines: Debian 13 with systemd, Debian 12 with no service manager.

The tests of this file build on each other, in the order in which they stand.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import ROOT, Engine, Run, playbook, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.docker, pytest.mark.slow]

MIRROR = "http://deb.debian.org/debian"
# Inside, an engine of its own runs; less than --privileged, which not every machine can grant.
NESTED = (
    "--cap-add=ALL", "--security-opt=seccomp=unconfined", "--security-opt=systempaths=unconfined",
    # A real host has sudo, whatever the engine below this one takes for its default.
    "--security-opt=no-new-privileges=false",
    "--device-cgroup-rule=a *:* rwm", "--cgroupns=host",
    "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
    "--tmpfs=/run", "--tmpfs=/tmp", "--volume=/var/lib/docker",
)  # fmt: skip
# Enough of a machine to sleep on.
TINY = (
    "tar --create --dereference --absolute-names --file=- /bin/sleep "
    "$(ldd /bin/sleep | grep -o '/[^ ]*') | docker import - tiny"
)


@dataclass(frozen=True)
class Machine:
    """A bare machine in a container."""

    name: str
    suite: str
    build: Callable[[], str]

    @property
    def engine(self) -> Engine:
        return Engine(("docker", "exec", self.name))

    def shell(self, script: str, *, seconds: float = 60) -> str:
        return self.engine.run("sh", "-c", script, seconds=seconds).strip()

    def daemon(self) -> str:
        return self.shell("cat /run/docker.pid")

    def start(self) -> None:
        Engine().run("docker", "run", "--detach", "--name", self.name, *NESTED, self.build())


def bookworm() -> str:
    """No service manager, no sudo, no CA bundle."""
    image = "dockerrole-bookworm:1"
    here = Engine()
    if not here.succeeds("docker", "image", "inspect", image):
        here.run(
            "bash", "-o", "pipefail", "-c",
            "mmdebstrap --quiet --variant=apt --include=python3 "
            "--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' "
            f"bookworm - {MIRROR} | "
            f"docker import --change 'CMD [\"sleep\", \"infinity\"]' - {image}",
            seconds=300,
        )  # fmt: skip
    return image


def trixie() -> str:
    """The machine of the other tests on container hosts: systemd and sudo."""
    script = ROOT / "files" / "images" / "containerhost" / "build.sh"
    done = subprocess.run(
        ["sh", str(script)], stdout=subprocess.PIPE, text=True, timeout=300, check=True
    )
    return done.stdout.strip()


BOOKWORM = Machine("dockerrole-bookworm", "bookworm", bookworm)
TRIXIE = Machine("dockerrole-trixie", "trixie", trixie)
MACHINES = (BOOKWORM, TRIXIE)
BOTH = pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.suite)


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not Engine().succeeds("docker", "info") or shutil.which("mmdebstrap") is None:
        pytest.skip("needs a Docker Engine and mmdebstrap")
    path = tmp_path_factory.mktemp("inventory") / "hosts.json"
    variables = {
        "ansible_connection": "community.docker.docker",
        "ansible_user": "root",
        "ansible_become": True,
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    hosts: dict[str, dict[str, str]] = {machine.name: {} for machine in MACHINES}
    path.write_text(json.dumps({"stack": {"hosts": hosts, "vars": variables}}))
    names = [machine.name for machine in MACHINES]
    subprocess.run(["docker", "rm", "--force", *names], capture_output=True, check=False)
    try:
        for machine in MACHINES:
            machine.start()
        yield path
    finally:
        subprocess.run(
            ["docker", "rm", "--force", "--volumes", *names], capture_output=True, check=False
        )


def converge(inventory: Path, *options: str, only: Machine | None = None, **values: Any) -> Run:
    limit = [f"--limit={only.name}"] if only else []
    return playbook(
        inventory,
        *limit,
        *options,
        name="../tests/roles/docker/play.yml",
        variables={
            "preflight_disk_docker_mb": 1,
            "preflight_disk_images_mb": 1,
            "preflight_memory_mb": 64,
            **values,
        },
        seconds=400,
    )


def test_rehearsal_changes_nothing(inventory: Path) -> None:
    """CS-1: --check on a bare machine says what it would do."""
    snapshot = (
        "ls -lR /etc/apt /etc/docker /usr/bin /usr/sbin /var/lib/apt 2>&1 | sha256sum; "
        "dpkg --list | sha256sum; ls /run/docker.sock /var/log/dockerd.log 2>&1; true"
    )
    before = [machine.shell(snapshot) for machine in MACHINES]
    run = converge(inventory, "--check", "--diff").succeeded()
    assert run.changed == 2
    assert run.output.count('+  "live-restore": true') == 2
    assert run.output.count("/etc/apt/preferences.d/compose-stack-trixie") >= 1
    assert [machine.shell(snapshot) for machine in MACHINES] == before


def test_no_root_and_no_sudo(inventory: Path) -> None:
    """Bad input: said in words, in the one report, beside what else is wrong."""
    run = converge(inventory, only=BOOKWORM, ansible_user="nobody", stack_server_names=[]).failed()
    assert "User 'nobody' is not root, and there is no sudo on the host." in run.output
    assert "stack_server_names is empty." in run.output
    assert run.changed == 0


def test_sudo_with_a_password(inventory: Path) -> None:
    """Bad input: without the password the report says what to give; with it all goes well."""
    TRIXIE.shell("useradd --groups sudo deploy && echo deploy:correct-horse | chpasswd")
    run = converge(inventory, "--check", only=TRIXIE, ansible_user="deploy").failed()
    assert "User 'deploy' cannot become root" in run.output
    assert "--ask-become-pass" in run.output
    converge(
        inventory, "--check", only=TRIXIE, ansible_user="deploy",
        ansible_become_password="correct-horse",
    ).succeeded()  # fmt: skip


def test_another_package_manager_at_work(inventory: Path) -> None:
    """Bad input: the lock's holder is named."""
    holder = (
        "import fcntl, time; f = open('/var/lib/dpkg/lock', 'w'); "
        "g = open('/var/lib/dpkg/lock-frontend', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "fcntl.lockf(g, fcntl.LOCK_EX); time.sleep(60)"
    )
    BOOKWORM.shell(f"setsid python3 -c {shlex.quote(holder)} >/dev/null 2>&1 & echo $! > /tmp/pid")
    try:
        run = converge(inventory, only=BOOKWORM, docker_apt_lock_seconds=1).failed()
    finally:
        BOOKWORM.shell("kill $(cat /tmp/pid)")
    assert "Another package manager has been busy for 1 s" in run.output


def test_mirror_out_of_reach(inventory: Path) -> None:
    """Bad input: and the next run converges."""
    run = converge(inventory, only=BOOKWORM, docker_debian_mirror="http://127.0.0.1:9/debian")
    assert "The package mirror cannot be reached" in run.failed().output
    assert "set docker_debian_mirror" in run.output


def test_installs_and_starts(inventory: Path) -> None:
    """CS-1: Debian's packages, settings in force from the first container on."""
    assert converge(inventory).succeeded().changed == 2
    for machine in MACHINES:
        info = json.loads(machine.shell("docker info --format '{{json .}}'"))
        assert info["LiveRestoreEnabled"] is True
        assert "name=no-new-privileges" in info["SecurityOptions"]
        assert machine.shell("docker compose version --short")
        assert machine.shell("docker buildx version")


@BOTH
def test_containers_run(inventory: Path, machine: Machine) -> None:
    """CS-1, FS-6: and publish on loopback unless told otherwise."""
    machine.shell(TINY)
    machine.shell("docker network create --driver bridge made")
    for network, port in (("bridge", 8080), ("made", 8090)):
        machine.shell(
            f"docker run --detach --name on-{network} --network {network} "
            f"--publish {port}:80 --publish 0.0.0.0:{port + 1}:80 tiny /bin/sleep 600"
        )
        published = machine.shell(f"docker port on-{network} 80")
        assert f"127.0.0.1:{port}\n" in f"{published}\n"
        assert f"0.0.0.0:{port + 1}\n" in f"{published}\n"
    log = json.loads(
        machine.shell("docker inspect --format '{{json .HostConfig.LogConfig}}' on-made")
    )
    assert log == {"Type": "json-file", "Config": {"max-file": "3", "max-size": "10m"}}


def test_nothing_else_moved(inventory: Path) -> None:
    """Debian 12 stays Debian 12."""
    assert "0 upgraded" in BOOKWORM.shell("apt-get --simulate dist-upgrade")
    assert "deb12" in BOOKWORM.shell("dpkg-query --show --showformat='${Version}' runc")
    assert "deb12" in BOOKWORM.shell("dpkg-query --show --showformat='${Version}' libc6")
    assert BOOKWORM.shell("ls /usr/sbin/policy-rc.d 2>/dev/null || echo none") == "none"


def test_nothing_to_do(inventory: Path) -> None:
    """One execution on each machine, and the same daemon."""
    before = [machine.daemon() for machine in MACHINES]
    run = converge(inventory).succeeded()
    assert run.changed == 0
    assert run.executions == len(MACHINES)
    assert [machine.daemon() for machine in MACHINES] == before
    assert converge(inventory, "--check").succeeded().changed == 0


def test_containers_outweigh_settings(inventory: Path) -> None:
    """A setting that needs a restart waits while containers run; one that does not is in force."""
    before = [machine.daemon() for machine in MACHINES]
    run = converge(
        inventory, docker_publish_address="0.0.0.0", docker_daemon_options={"debug": True}
    ).succeeded()
    assert run.changed == 2
    assert run.output.count("has not taken up default-network-opts, ip of") == 2
    assert [machine.daemon() for machine in MACHINES] == before
    for machine in MACHINES:
        assert machine.shell("docker info --format '{{.Debug}}'") == "true"
        assert len(machine.shell("docker ps --quiet").split()) == 2


def test_restart_on_demand_keeps_containers(inventory: Path) -> None:
    """live-restore, and settings of others that stay."""
    for machine in MACHINES:
        machine.shell(
            "python3 -c \"import json; p = '/etc/docker/daemon.json'; d = json.load(open(p)); "
            "d['max-concurrent-downloads'] = 2; json.dump(d, open(p, 'w'))\""
        )
    started = [machine.shell(STARTED) for machine in MACHINES]
    before = [machine.daemon() for machine in MACHINES]
    run = converge(inventory, docker_restart="always", docker_daemon_options={"debug": None})
    assert run.succeeded().changed == 2
    assert all(old != machine.daemon() for machine, old in zip(MACHINES, before, strict=True))
    assert [machine.shell(STARTED) for machine in MACHINES] == started
    for machine in MACHINES:
        settings = json.loads(machine.shell("cat /etc/docker/daemon.json"))
        assert settings["max-concurrent-downloads"] == 2
        assert settings["ip"] == "127.0.0.1"
        assert "debug" not in settings
        assert machine.shell("ls /etc/docker/daemon.json.orig")
    assert converge(inventory).succeeded().changed == 0


STARTED = "docker inspect --format '{{.State.StartedAt}} {{.State.Running}}' on-bridge on-made"


def test_settings_the_daemon_refuses(inventory: Path) -> None:
    """Bad input: nothing live changes."""
    before = [machine.shell("cat /etc/docker/daemon.json") for machine in MACHINES]
    run = converge(inventory, docker_daemon_options={"no-such-setting": 1}).failed()
    assert run.output.count("dockerd refuses the settings") >= 2
    assert [machine.shell("cat /etc/docker/daemon.json") for machine in MACHINES] == before


def test_daemon_that_does_not_come_up(inventory: Path) -> None:
    """Bad input: its last words are shown, and the next run converges."""
    options = {"storage-driver": "no-such-driver"}
    run = converge(inventory, docker_restart="always", docker_daemon_options=options).failed()
    assert run.output.count("The Docker daemon did not come up") >= 2
    assert "no-such-driver" in run.output
    converge(inventory, docker_daemon_options={"storage-driver": None}).succeeded()
    for machine in MACHINES:
        assert machine.shell(STARTED).count("true") == 2


@BOTH
def test_stopped_daemon_is_started(inventory: Path, machine: Machine) -> None:
    if machine is TRIXIE:
        machine.shell("systemctl stop docker.socket docker.service")
    else:
        machine.shell("kill -9 $(cat /run/docker.pid)")
    stopped = "! docker info >/dev/null 2>&1"
    wait_for("the daemon gone", lambda: machine.engine.succeeds("sh", "-c", stopped), 20)
    assert converge(inventory, only=machine).succeeded().changed == 1
    assert machine.shell(STARTED).count("true") == 2
