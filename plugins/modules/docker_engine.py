#!/usr/bin/python
"""Ansible module: have a good Docker Engine, configured and running."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_engine
short_description: Have a good Docker Engine, configured and running
description:
  - Installs what is missing with apt, merges settings into C(/etc/docker/daemon.json), and starts
    the daemon, with systemd or, where no service manager runs, by itself.
  - An engine that is there is never upgraded, and a daemon that needs no restart is never
    restarted. Settings that the daemon can reload are reloaded.
options:
  packages:
    description:
      - Packages that provide each part of Docker. Only those of missing parts are installed.
    type: dict
    required: true
  prerequisites:
    description: Further packages to install.
    type: list
    elements: str
    default: []
  apt_source:
    description:
      - Package source to add when something of O(packages) must be installed. Keys are C(name),
        C(uri) (empty takes the host's own mirror), C(suite), C(components), C(signed_by),
        C(key_url) (where to download C(signed_by) from) and C(pinned), the only packages taken from
        it; none means all.
    type: dict
    default: {}
  daemon_options:
    description: Settings laid over what daemon.json holds. A value of null removes a key.
    type: dict
    default: {}
  restart:
    description: When a running daemon may be restarted for settings it cannot reload.
    type: str
    choices: [idle, always, never]
    default: idle
  start_seconds:
    description: Seconds to wait for the daemon to answer.
    type: int
    default: 60
  lock_seconds:
    description: Seconds to wait for another package manager to finish.
    type: int
    default: 180
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Have an engine
  docker_engine:
    packages:
      engine: [docker.io, containerd]
      client: [docker-cli]
      compose: [docker-compose]
      buildx: [docker-buildx]
    daemon_options:
      live-restore: true
"""

RETURN = r"""
actions:
  description: What was done, or would be.
  type: list
  elements: str
  returned: always
docker:
  description: What the engine is like now, as the preflight module describes it.
  type: dict
  returned: success, not in check mode
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.docker_host import (
    DAEMON_JSON,
    OBSERVABLE,
    PID_FILE,
    RELOADABLE,
    Engine,
    EngineError,
    docker_facts,
    merge_daemon_options,
    pending_options,
    running,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTAINERD_PID_FILE = Path("/var/run/docker/containerd/containerd.pid")
LOG = Path("/var/log/dockerd.log")
LOG_BYTES = 10 * 2**20
BACKUP = Path(f"{DAEMON_JSON}.orig")
POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_TEXT = """#!/bin/sh
# compose-stack: no service manager runs, so apt must not start services.
exit 101
"""
APT_OPTIONS = ("-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30")
SOURCE_PREFIX = "compose-stack-"
LOCKED = re.compile(
    r"Could not get lock [^\n]*|dpkg[^\n]* lock was locked by another process[^\n]*"
)


class DockerEngine:
    """Brings the engine to the wanted state, step by step."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.check: bool = module.check_mode
        self.actions: list[str] = []
        self.diff: list[dict[str, str]] = []
        self.systemd = Path("/run/systemd/system").is_dir()
        self.options: dict[str, Any] = {}
        self.waiting: set[str] = set()
        self.process: subprocess.Popen[bytes] | None = None

    def fail(self, cause: str, remedy: str) -> NoReturn:
        self.module.fail_json(msg=f"{cause}\nRemedy: {remedy}", actions=self.actions)
        raise AssertionError  # fail_json does not return

    def run(self) -> None:
        before = docker_facts()
        if before["state"] == "unreachable":
            self.fail(f"Docker cannot be used: {before['reason']}.", "Repair it, or remove it.")
        self.install(before)
        changed_keys = self.configure(before)
        if before["state"] == "running":
            self.apply(before, changed_keys)
        else:
            self.start()
        result: dict[str, Any] = {
            "changed": bool(self.actions),
            "actions": self.actions,
            "diff": self.diff,
        }
        if not self.check:
            result["docker"] = self.final_facts()
        self.module.exit_json(**result)

    def final_facts(self) -> dict[str, Any]:
        docker: dict[str, Any] = docker_facts()
        docker["daemon_options_current"] = True
        docker["restart_pending"] = sorted({*docker["restart_pending"], *self.waiting})
        missing = [
            part
            for part, found in (
                ("the client", docker["client"]),
                ("the compose plugin", docker["compose_version"]),
                ("the buildx plugin", docker["buildx_version"]),
            )
            if not found
        ]
        if missing:
            self.fail(
                f"The packages are installed, but {' and '.join(missing)} cannot be used.",
                "See what 'docker version' and 'docker info' say; another client may stand before "
                f"the package's on PATH ({docker['client']}).",
            )
        docker["ready"] = True
        return docker

    # Packages

    def install(self, docker: dict[str, Any]) -> None:
        parts = self.params["packages"]
        wanted: list[str] = []
        if docker["state"] == "absent":
            wanted += parts["engine"]
        if not docker["client"] or docker["state"] == "absent":
            wanted += parts["client"]
        if not docker["compose_version"]:
            wanted += parts["compose"]
        if not docker["buildx_version"]:
            wanted += parts["buildx"]
        wanted = self.not_installed(wanted)
        source = self.params["apt_source"] if wanted else {}
        missing = wanted + self.not_installed(self.params["prerequisites"])
        if not missing:
            return
        if source:
            self.add_source(source)
        self.actions.append(f"install {', '.join(missing)}")
        if self.check:
            return
        with self.services_held_back():
            self.apt("dpkg", "--configure", "-a")
            update = self.apt("apt-get", *APT_OPTIONS, "update", check=False)
            self.apt(
                "apt-get", *APT_OPTIONS, "-o", "Dpkg::Options::=--force-confold", "--yes",
                "--no-install-recommends", "--no-upgrade", "install", *missing,
                context=update,
            )  # fmt: skip

    def not_installed(self, packages: list[str]) -> list[str]:
        if not packages:
            return []
        if shutil.which("apt-get") is None:
            self.fail(
                f"{', '.join(packages)} must be installed, and the host has no apt.",
                "Install Docker Engine 25 or newer with the compose and buildx plugins yourself.",
            )
        done = subprocess.run(
            ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *packages],
            capture_output=True,
            text=True,
            check=False,
        )
        installed = {
            line.split()[0] for line in done.stdout.splitlines() if line.endswith(" installed")
        }
        return [package for package in dict.fromkeys(packages) if package not in installed]

    def add_source(self, source: dict[str, Any]) -> None:
        uri = source["uri"] or host_mirror()
        key = Path(source["signed_by"])
        if not key.exists():
            if not source.get("key_url"):
                self.fail(
                    f"{key}, which signs the suite {source['suite']}, is not on the host.",
                    "Upgrade debian-archive-keyring (apt-get update && apt-get install "
                    "debian-archive-keyring).",
                )
            self.fetch_key(source["key_url"], key)
        if source["pinned"]:
            release = f"Pin: release n={source['suite']}\nPin-Priority:"
            # The preferences come first: the suite must never be seen without its pin.
            self.write(
                Path(f"/etc/apt/preferences.d/{source['name']}"),
                f"Package: *\n{release} 1\n\n"
                f"Package: {' '.join(source['pinned'])}\n{release} 990\n",
            )
        self.write(
            Path(f"/etc/apt/sources.list.d/{source['name']}.sources"),
            f"Types: deb\nURIs: {uri}\nSuites: {source['suite']}\n"
            f"Components: {source['components']}\nSigned-By: {key}\n",
        )

    def fetch_key(self, url: str, path: Path) -> None:
        self.actions.append(f"download {url} to {path}")
        if self.check:
            return
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310
                text = answer.read().decode()
        except (OSError, urllib.error.URLError, ValueError) as error:
            self.fail(
                f"{url} cannot be downloaded: {error}.",
                "Check the host's network and proxy, or set docker_source to distribution.",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, text)

    def apt(self, *argv: str, check: bool = True, context: str = "") -> str:
        """Run a package tool, waiting for the lock that another one holds."""
        deadline = time.monotonic() + self.params["lock_seconds"]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        while True:
            done = subprocess.run(
                argv,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
            locked = LOCKED.search(done.stdout)
            if done.returncode == 0 or not locked:
                break
            if time.monotonic() > deadline:
                self.fail(
                    f"Another package manager has been busy for {self.params['lock_seconds']} s: "
                    f"{locked.group().strip()}",
                    "Wait until it is done (unattended-upgrades may take minutes), then run "
                    "this again; docker_apt_lock_seconds sets the patience.",
                )
            time.sleep(2)
        if done.returncode and check:
            self.apt_failed(argv, f"{context}\n{done.stdout}")
        return done.stdout

    def apt_failed(self, argv: tuple[str, ...], output: str) -> NoReturn:
        lines = [line for line in output.splitlines() if line.startswith(("E:", "Err:", "W:"))]
        detail = "\n".join((lines or output.splitlines())[-8:])
        if re.search(r"Failed to fetch|Could not (connect|resolve)|Temporary failure", output):
            self.fail(
                f"The package mirror cannot be reached:\n{detail}",
                "Check the host's network, DNS and proxy (Acquire::http::Proxy in "
                "/etc/apt/apt.conf.d), or set docker_debian_mirror; then run this again.",
            )
        if "Unable to locate package" in output or "has no installation candidate" in output:
            self.fail(
                f"The distribution's package sources do not have what is needed:\n{detail}",
                "Check /etc/apt/sources.list.d (main must be enabled; universe on Ubuntu), or "
                "install Docker yourself.",
            )
        self.fail(f"{argv[0]} failed:\n{detail}", "Repair what it names and run this again.")

    @contextlib.contextmanager
    def services_held_back(self) -> Iterator[None]:
        """Keep apt from starting services where no service manager runs: it would fail."""
        ours = POLICY.exists() and POLICY.read_text(encoding="utf-8") == POLICY_TEXT
        if self.systemd or (POLICY.exists() and not ours):
            yield
            return
        replace(POLICY, POLICY_TEXT, 0o755)
        try:
            yield
        finally:
            POLICY.unlink()

    # Settings

    def configure(self, docker: dict[str, Any]) -> set[str]:
        """Merge the settings into daemon.json and return the keys that changed."""
        if docker["daemon_options_error"]:
            self.fail(
                f"{DAEMON_JSON} cannot be used: {docker['daemon_options_error']}.",
                "Repair it or move it away.",
            )
        existing: dict[str, Any] = docker["daemon_options"] or {}
        merged = merge_daemon_options(existing, self.params["daemon_options"])
        self.options = merged
        if docker["swarm"] and merged.get("live-restore"):
            self.fail(
                "This host is part of a Docker Swarm, which refuses to work with live-restore.",
                "Set docker_live_restore to false.",
            )
        if merged == existing:
            return set()
        text = json.dumps(merged, indent=2, sort_keys=True) + "\n"
        if not self.check:
            self.validate(text)
            if docker["daemon_options"] is not None and not BACKUP.exists():
                shutil.copy2(DAEMON_JSON, BACKUP)
        self.write(Path(DAEMON_JSON), text)
        return {key for key in {*merged, *existing} if merged.get(key) != existing.get(key)}

    def validate(self, text: str) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as candidate:
            candidate.write(text)
            candidate.flush()
            done = subprocess.run(
                ["dockerd", "--validate", "--config-file", candidate.name],
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            detail = (done.stderr or done.stdout).strip().replace(candidate.name, DAEMON_JSON)
            self.fail(
                f"dockerd refuses the settings: {detail}",
                f"Correct docker_daemon_options, or what {DAEMON_JSON} holds already.",
            )

    def write(self, path: Path, text: str) -> None:
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if before == text:
            return
        self.diff.append(
            {
                "before": before,
                "after": text,
                "before_header": str(path) if before else "absent",
                "after_header": str(path),
            }
        )
        self.actions.append(f"write {path}")
        if not self.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(path, text)

    # The daemon

    def apply(self, docker: dict[str, Any], changed_keys: set[str]) -> None:
        """Let a running daemon take up its settings, as gently as they allow."""
        pending = (changed_keys - OBSERVABLE) | set(pending_options(Engine(), self.options))
        if pending & RELOADABLE:
            # First: once live-restore is in force, containers outlive a restart.
            self.reload(docker)
        waiting = pending - RELOADABLE
        if not waiting:
            return
        policy = self.params["restart"]
        if policy == "always" or (policy == "idle" and docker["idle"]):
            self.restart(docker)
        else:
            self.waiting = waiting

    def reload(self, docker: dict[str, Any]) -> None:
        self.actions.append("reload the daemon")
        if self.check:
            return
        if self.systemd:
            self.systemctl("reload", "docker")
        else:
            os.kill(self.known_pid(docker), signal.SIGHUP)
        self.wait()

    def restart(self, docker: dict[str, Any]) -> None:
        self.actions.append("restart the daemon")
        if self.check:
            return
        if self.systemd:
            self.systemctl("restart", "docker")
            self.wait()
            return
        pid = self.known_pid(docker)
        command = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").rstrip("\0").split("\0")
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + self.params["start_seconds"]
        while running(pid):
            if time.monotonic() > deadline:
                self.fail(f"dockerd (PID {pid}) does not stop.", f"See the end of {LOG}.")
            time.sleep(0.1)
        self.spawn(command)
        self.wait()

    def known_pid(self, docker: dict[str, Any]) -> int:
        if docker["pid"] is None:
            self.fail(
                "The daemon's process cannot be found on this host, so it cannot take up "
                f"{DAEMON_JSON}.",
                "Restart it where it runs.",
            )
        return int(docker["pid"])

    def start(self) -> None:
        self.actions.append("start the daemon")
        if self.check:
            return
        if self.systemd:
            self.systemctl("daemon-reload")
            self.systemctl("enable", "docker")
            # After a try that failed, systemd would wait before it lets another one begin. Settings
            # may have been written after apt started the daemon, so start alone is not enough.
            self.systemctl("reset-failed", "docker", check=False)
            self.systemctl("restart", "docker")
        else:
            forget_dead_processes()
            self.spawn(["dockerd"])
        self.wait()

    def spawn(self, command: list[str]) -> None:
        """Start the daemon on its own, with a log that does not grow for ever."""
        if LOG.exists() and LOG.stat().st_size > LOG_BYTES:
            LOG.replace(LOG.with_suffix(".log.1"))
        with LOG.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def systemctl(self, *argv: str, check: bool = True) -> None:
        done = subprocess.run(["systemctl", *argv], capture_output=True, text=True, check=False)
        if done.returncode and check:
            self.daemon_failed(f"systemctl {' '.join(argv)}: {done.stderr.strip()}")

    def wait(self) -> None:
        engine = Engine(timeout=5)
        deadline = time.monotonic() + self.params["start_seconds"]
        error: Exception | None = None
        while time.monotonic() < deadline:
            try:
                if engine.get("/_ping") == "OK":
                    return
            except (OSError, EngineError) as current:
                error = current
            if self.process and self.process.poll() is not None:
                self.daemon_failed(f"dockerd ended with exit code {self.process.returncode}")
            time.sleep(0.2)
        self.daemon_failed(f"no answer after {self.params['start_seconds']} s ({error})")

    def daemon_failed(self, what: str) -> NoReturn:
        if self.systemd:
            where = "journalctl -u docker"
            done = subprocess.run(
                ["journalctl", "--unit=docker", "--lines=15", "--no-pager", "--output=cat"],
                capture_output=True,
                text=True,
                check=False,
            )
            lines = done.stdout.splitlines()
        else:
            where = str(LOG)
            lines = LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        last = "\n".join(lines)
        self.fail(
            f"The Docker daemon did not come up: {what}\nIts last log lines ({where}):\n{last}",
            f"Repair what they name ({DAEMON_JSON} holds the settings) and run this again.",
        )


def forget_dead_processes() -> None:
    """Remove pid files of a daemon that was killed.

    dockerd asks whether something has that number, and takes a dead process that nobody has
    collected yet, or a stranger, for a daemon at work.
    """
    for path, name in ((Path(PID_FILE), "dockerd"), (CONTAINERD_PID_FILE, "containerd")):
        try:
            pid = int(path.read_text(encoding="ascii"))
            command = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            command = ""
        if command != name or not running(pid):
            path.unlink(missing_ok=True)


def replace(path: Path, text: str, mode: int = 0o644) -> None:
    """Put a file in place so that readers find the old content or the new one."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
    ) as candidate:
        candidate.write(text)
        candidate.flush()
        os.fsync(candidate.fileno())
    Path(candidate.name).chmod(mode)
    Path(candidate.name).replace(path)


def host_mirror() -> str:
    """Return the Debian mirror that the host itself uses."""
    found = []
    for path in [*Path("/etc/apt/sources.list.d").glob("*"), Path("/etc/apt/sources.list")]:
        if not path.is_file() or path.name.startswith(SOURCE_PREFIX):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".sources":
            found += re.findall(r"^URIs:\s*(\S+)", text, re.MULTILINE)
        else:
            found += re.findall(r"^deb\s+(?:\[[^]]*\]\s+)?(\S+)", text, re.MULTILINE)
    # Mirrors keep Debian's own layout: security, backports and other vendors have other names.
    mirrors = [uri for uri in found if re.match(r"https?://\S+/debian/?$", uri)]
    return mirrors[0] if mirrors else "http://deb.debian.org/debian"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "dict", "required": True},
            "prerequisites": {"type": "list", "elements": "str", "default": []},
            "apt_source": {"type": "dict", "default": {}},
            "daemon_options": {"type": "dict", "default": {}},
            "restart": {"type": "str", "choices": ["idle", "always", "never"], "default": "idle"},
            "start_seconds": {"type": "int", "default": 60},
            "lock_seconds": {"type": "int", "default": 180},
        },
        supports_check_mode=True,
    )
    DockerEngine(module).run()


if __name__ == "__main__":
    main()
