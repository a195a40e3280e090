"""A container host on a disk of its own, whose power can be cut."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests import disk
from tests.harness import ROOT, Engine, Site, Stack, playbook, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Run

NAME = "compose-stack-power"
SSH_PORT, HTTP_PORT, HTTPS_PORT = 48022, 48082, 48445
DISK_BYTES = 12 << 30
# All that a host writes, but for /run and /tmp, which are memory, and for programs.
ON_THE_DISK = ("etc", "home", "opt", "root", "srv", "var")
PRODUCTION = ROOT / "inventories/production/group_vars"


def missing() -> str:
    """What this computer lacks to have such a host; empty when nothing does."""
    return disk.missing() or ("" if shutil.which("mmdebstrap") else "apt-get install mmdebstrap")


class Machine:
    """The host of molecule's scenario, with all that it keeps on an ext4 file system of its own.

    When its power is cut, the file system is shut down and every process is killed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._disk: disk.Disk | None = None
        self._key = directory / "key"
        self._process = 0
        self.powered_on = 0.0

    @classmethod
    @contextlib.contextmanager
    def made(cls, directory: Path) -> Iterator[Machine]:
        """One with nothing on it, switched on; it is gone with the block."""
        machine = cls(directory)
        try:
            machine._make()
            yield machine
        finally:
            machine._remove()

    def _make(self) -> None:
        self._remove()
        image = _output(str(ROOT / "files/images/containerhost/build.sh"))
        self._disk = disk.Disk(self._directory, DISK_BYTES)
        mount = self._disk.mount
        places = [f"/{name}" for name in ON_THE_DISK]
        _output("docker", "run", "--rm", "--network=none", f"--volume={mount}:/mnt", image,
                "cp", "--archive", *places, "/mnt")  # fmt: skip
        # The options of molecule/default/create.yml.
        _output(
            "docker", "create", f"--name={NAME}", f"--hostname={NAME}", "--cap-add=ALL",
            "--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined",
            "--security-opt=systempaths=unconfined", "--security-opt=no-new-privileges=false",
            "--device-cgroup-rule=a *:* rwm", "--cgroupns=host",
            "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw", "--tmpfs=/run", "--tmpfs=/tmp",
            *(f"--publish=127.0.0.1:{outside}:{inside}"
              for outside, inside in ((SSH_PORT, 22), (HTTP_PORT, 80), (HTTPS_PORT, 443))),
            *(f"--volume={mount}{place}:{place}" for place in places),
            image,
        )  # fmt: skip
        _output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", NAME, "-f", str(self._key))
        self._switch_on()
        public = Path(f"{self._key}.pub").read_text()
        self.engine.run(
            "sh", "-euc",
            "useradd --create-home --shell /bin/bash deploy\n"
            "install -d -m 0700 -o deploy -g deploy /home/deploy/.ssh\n"
            'printf "%s" "$1" > /home/deploy/.ssh/authorized_keys\n'
            "chown deploy:deploy /home/deploy/.ssh/authorized_keys\n"
            'echo "deploy ALL=(ALL) NOPASSWD: ALL" > /etc/sudoers.d/deploy\n'
            # Installing is not what is looked at.
            "echo force-unsafe-io > /etc/dpkg/dpkg.cfg.d/fast",
            "sh", public,
        )  # fmt: skip
        self.wait_for_boot()

    def _remove(self) -> None:
        _output("docker", "rm", "--force", "--volumes", NAME, check=False)
        if self._disk:
            self._disk.remove()

    def _switch_on(self) -> None:
        self.powered_on = time.monotonic()
        _output("docker", "start", NAME)
        self._process = int(_output("docker", "inspect", "--format={{.State.Pid}}", NAME))

    def cut(self) -> None:
        """Take the power away."""
        assert self._disk is not None
        self._disk.cut()
        # With the first process of its namespace all others die.
        os.kill(self._process, signal.SIGKILL)

    def power_on(self) -> None:
        """Give the power back, and do not wait."""
        assert self._disk is not None
        _output("docker", "wait", NAME)
        self._disk.unplug()
        self._disk.plug_in()
        self._switch_on()

    def shut_down(self) -> None:
        """As for a reboot; what the firmware does then is `power_on`."""
        self.engine.run("systemctl", "reboot", check=False)
        _output("docker", "wait", NAME)

    def wait_for_boot(self) -> None:
        """Until the service manager has started what it had to, and one can sign in."""
        wait_for(
            "the host to boot",
            lambda: (
                self.engine.run("systemctl", "is-system-running", check=False).strip()
                in ("running", "degraded")
            ),
            60,
        )
        wait_for("an answer on SSH", _greets, 60)

    @property
    def engine(self) -> Engine:
        return Engine(("docker", "exec", NAME))

    @property
    def stack(self) -> Stack:
        ca = self._directory / "ca.pem"
        if not ca.exists():
            ca.write_text(self.engine.run("cat", "/opt/compose-stack/tls/live/ca.pem"))
        site = Site("127.0.0.1", HTTPS_PORT, HTTP_PORT, "www.example.com", ca)
        return Stack(self.engine, "compose-stack", "/opt/compose-stack", site)

    @property
    def inventory(self) -> Path:
        """An inventory of this host alone, with production's settings."""
        inventory = self._directory / "inventory"
        if not inventory.exists():
            inventory.mkdir()
            (inventory / "group_vars").symlink_to(PRODUCTION)
            host: dict[str, Any] = {
                "ansible_host": "127.0.0.1",
                "ansible_port": SSH_PORT,
                "ansible_user": "deploy",
                "ansible_ssh_private_key_file": str(self._key),
                # As in ansible.cfg, less the compression of what is compressed.
                "ansible_ssh_args": "-o ControlMaster=auto -o ControlPersist=60s "
                "-o ServerAliveInterval=15",
                "ansible_ssh_common_args": "-o StrictHostKeyChecking=no "
                "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            }
            hosts = {"stack": {"hosts": {"power": host}}}
            (inventory / "hosts.yml").write_text(yaml.safe_dump(hosts))
        return inventory

    def run(self, *options: str, **arguments: Any) -> Run:
        return playbook(self.inventory, *options, **arguments)


def _greets() -> bool:
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", SSH_PORT), timeout=5) as connection,
    ):
        return connection.recv(4) == b"SSH-"
    return False


def _output(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()
