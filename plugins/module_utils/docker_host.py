"""What can be learnt about the Docker Engine of this host without changing it.

Talks to the engine's socket directly: it is there before any client or Python library is, and an
answer costs a millisecond instead of a process.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

SOCKET = "/var/run/docker.sock"
PID_FILE = "/var/run/docker.pid"
DAEMON_JSON = "/etc/docker/daemon.json"
DATA_ROOT = "/var/lib/docker"
CONTAINERD_ROOT = "/var/lib/containerd"
"""Where an engine that leaves images to containerd, the default from version 29 on, has them."""
LOADING_NOTE = "compose-stack.loading"
"""Beside the images while some are not on the disk for certain; the role `images` keeps it."""

# https://docs.docker.com/reference/cli/dockerd/#configuration-reload-behavior
RELOADABLE = frozenset(
    {
        "authorization-plugins",
        "debug",
        "default-runtime",
        "features",
        "insecure-registries",
        "labels",
        "live-restore",
        "max-concurrent-downloads",
        "max-concurrent-uploads",
        "max-download-attempts",
        "registry-mirrors",
        "runtimes",
        "shutdown-timeout",
    }
)

# What the engine reports about itself, so that it can be compared with daemon.json.
OBSERVABLE = frozenset({"data-root", "ip", "live-restore", "log-driver", "no-new-privileges"})


class EngineError(Exception):
    """The engine answered with an error or not at all."""


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    """Reads from the engine's API."""

    def __init__(self, path: str = SOCKET, timeout: float = 10) -> None:
        self.path = path
        self.timeout = timeout

    def get(self, resource: str, **query: Any) -> Any:
        """Return the decoded answer, or None where there is no such thing."""
        if query:
            pairs = (
                f"{k}={quote(v if isinstance(v, str) else json.dumps(v))}" for k, v in query.items()
            )
            resource += "?" + "&".join(pairs)
        connection = _SocketConnection(self.path, self.timeout)
        try:
            connection.request("GET", resource)
            response = connection.getresponse()
            body = response.read()
        except http.client.RemoteDisconnected:  # an OSError as well: nobody answered
            raise
        except http.client.HTTPException as error:
            raise EngineError(f"no valid answer on {self.path}: {error!r}") from error
        finally:
            connection.close()
        if response.status == http.client.NOT_FOUND:
            return None
        if response.status >= http.client.BAD_REQUEST:
            raise EngineError(body.decode(errors="replace").strip())
        return json.loads(body) if body.startswith((b"{", b"[")) else body.decode()


def version_tuple(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: 2.26.1-4 is (2, 26, 1)."""
    match = re.search(r"\d+(\.\d+)*", text or "")
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def _plugin_versions(client: str) -> dict[str, str]:
    """Return the versions of the client's plugins; those that are not there have none."""
    commands = {
        "compose_version": [client, "compose", "version", "--short"],
        "buildx_version": [client, "buildx", "version"],
    }
    running_commands = {
        name: subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )
        for name, command in commands.items()
    }  # fmt: skip
    versions = {}
    for name, process in running_commands.items():
        output, _ = process.communicate(timeout=60)
        found = ".".join(map(str, version_tuple(output)))
        versions[name] = found if process.returncode == 0 else ""
    return versions


def running(pid: int) -> bool:
    """Return whether a process lives; one that nobody has collected yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def daemon_pid() -> int | None:
    """Return the daemon's process id when its pid file names a live dockerd."""
    try:
        pid = int(Path(PID_FILE).read_text(encoding="ascii"))
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return pid if name == "dockerd" and running(pid) else None


def read_daemon_options() -> tuple[dict[str, Any] | None, str]:
    """Return the content of daemon.json (None when absent) and what is wrong with it."""
    try:
        options = json.loads(Path(DAEMON_JSON).read_text(encoding="utf-8") or "{}")
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError) as error:
        return None, str(error)
    if not isinstance(options, dict):
        return None, "it does not hold a JSON object"
    return options, ""


def merge_daemon_options(existing: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Return `existing` with `wanted` laid over it.

    Keys nobody asked about stay; null removes a key. Log options belong to one log driver, so they
    are replaced as a whole.
    """
    merged = dict(existing)
    for key, value in wanted.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "log-opts":
            merged[key] = merge_daemon_options(merged[key], value)
        else:
            merged[key] = value
    return merged


def pending_options(engine: Engine, options: dict[str, Any]) -> list[str]:
    """Return which observable keys of daemon.json the running daemon has not taken up yet."""
    info = engine.get("/info")
    effective: dict[str, Any] = {
        "live-restore": info.get("LiveRestoreEnabled"),
        "log-driver": info.get("LoggingDriver"),
        "no-new-privileges": "name=no-new-privileges" in (info.get("SecurityOptions") or []),
        "data-root": info.get("DockerRootDir"),
    }
    bridge = engine.get("/networks/bridge") or {}
    address = (bridge.get("Options") or {}).get("com.docker.network.bridge.host_binding_ipv4")
    if address:
        effective["ip"] = address
    return sorted(
        key for key, value in effective.items() if key in options and options[key] != value
    )


def clients_connected(path: str = SOCKET) -> bool:
    """Return whether somebody holds a connection to the engine: a build, a pull, a log reader."""
    connected = "03"
    names = {path, str(Path(path).resolve())}
    # The engine takes a moment to close what this process has just closed.
    for _attempt in range(5):
        try:
            lines = Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()[1:]
        except OSError:
            return True
        rows = (line.split() for line in lines)
        if not any(len(row) > 7 and row[7] in names and row[5] == connected for row in rows):
            return False
        time.sleep(0.05)
    return True


def images(engine: Engine) -> list[str]:
    """Return every name the engine knows an image by: tags, and digests it was pulled by."""
    listed = engine.get("/images/json") or []
    names = {
        name
        for image in listed
        for kind in ("RepoTags", "RepoDigests")
        for name in image.get(kind) or []
    }
    return sorted(name for name in names if not name.startswith("<none>"))


def _unreachable(error: Exception) -> tuple[str, str]:
    """Return the state and reason that a failed connection stands for."""
    if isinstance(error, PermissionError):
        return "unreachable", f"permission to open {SOCKET} is denied"
    installed = shutil.which("dockerd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    pid = daemon_pid()
    if pid is not None:
        return "unreachable", f"dockerd runs (PID {pid}) but does not answer on {SOCKET}: {error}"
    # systemd listens for a daemon that does not come up, and drops whoever connects.
    stopped = (FileNotFoundError, ConnectionRefusedError, ConnectionResetError, BrokenPipeError)
    if isinstance(error, stopped):
        return ("stopped", "the daemon does not run") if installed else ("absent", "")
    return "unreachable", f"{SOCKET} does not answer: {error}"


def docker_facts() -> dict[str, Any]:
    """Describe the engine, its plugins and its settings.

    `state` is running, stopped (installed, can be started), absent, or unreachable (there, but
    starting it would not help).
    """
    options, options_error = read_daemon_options()
    facts: dict[str, Any] = {
        "state": "running",
        "reason": "",
        "version": "",
        "client": shutil.which("docker") or "",
        "compose_version": "",
        "buildx_version": "",
        "root_dir": (options or {}).get("data-root", DATA_ROOT),
        "images_dir": (options or {}).get("data-root", DATA_ROOT),
        "containers_running": 0,
        "idle": True,
        "swarm": False,
        "pid": daemon_pid(),
        "daemon_options": options,
        "daemon_options_error": options_error,
        "restart_pending": [],
        "images": [],
    }
    if facts["client"]:
        facts.update(_plugin_versions(facts["client"]))
    engine = Engine()
    try:
        info = engine.get("/info")
        facts["images"] = images(engine)
    except (OSError, EngineError, ValueError) as error:
        facts["state"], facts["reason"] = _unreachable(error)
        return facts
    facts["version"] = info["ServerVersion"]
    facts["root_dir"] = info["DockerRootDir"]
    by_containerd = ["driver-type", "io.containerd.snapshotter.v1"] in (
        info.get("DriverStatus") or []
    )
    facts["images_dir"] = CONTAINERD_ROOT if by_containerd else facts["root_dir"]
    # The power went while they were loaded, or the run was killed: listed they are, whole or not.
    with contextlib.suppress(OSError):
        if Path(facts["images_dir"], LOADING_NOTE).exists():
            facts["images"] = []
    facts["containers_running"] = info["ContainersRunning"]
    facts["idle"] = info["ContainersRunning"] == 0 and not clients_connected()
    facts["swarm"] = (info.get("Swarm") or {}).get("LocalNodeState") == "active"
    facts["restart_pending"] = pending_options(engine, options or {})
    return facts
