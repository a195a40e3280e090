#!/usr/bin/python3
"""Write metrics of a Compose project's containers for node_exporter's textfile collector.

Runs on the Docker host as root, so that no container needs the engine's socket. Asks the engine
only what it alone knows (names, health, restarts); usage comes straight from the kernel's cgroup
files. Needs Python 3.9 or later and nothing else.
"""
# pathlib, typing, dataclasses and http.client would double the memory of a process that is always
# there.
# ruff: noqa: PTH100, PTH104, PTH108, PTH112, PTH115, PTH116, PTH118, PTH119, PTH120, PTH208

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import signal
import socket
import sys
import time
from contextlib import suppress
from datetime import date

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

    # Which container, and when it was started.
    Run = tuple[str, "float | None"]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
LABEL = "com.docker.compose."
# An answer of the engine is some kilobytes for each container; what is longer is no answer.
ANSWER_LIMIT = 16 << 20
ENGINE_SECONDS = 5.0
# What reading says of a process or cgroup that has just gone.
GONE = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EINVAL, errno.ENOTDIR}
# Docker's own devices come and go with containers and repeat what the real ones carry.
DOCKER_DEVICE = re.compile(r"lo|veth.*|br-[0-9a-f]{12}|docker\d+|docker_gwbridge")

METRICS = {
    "container_cpu_usage_seconds_total": ("counter", "CPU time used since the container started."),
    "container_memory_working_set_bytes": (
        "gauge",
        "Memory that cannot be reclaimed easily: usage less inactive file cache.",
    ),
    "container_memory_usage_bytes": ("gauge", "Memory charged to the container, cache included."),
    "container_spec_memory_limit_bytes": ("gauge", "Memory limit, 0 for none."),
    "container_spec_cpu_quota_cores": ("gauge", "CPU limit in cores, absent for none."),
    "container_processes": ("gauge", "Processes and threads."),
    "container_spec_processes_limit": (
        "gauge",
        "Limit of processes and threads, absent for none.",
    ),
    "container_network_receive_bytes_total": (
        "counter",
        "Bytes received, all interfaces but loopback.",
    ),
    "container_network_transmit_bytes_total": (
        "counter",
        "Bytes sent, all interfaces but loopback.",
    ),
    "container_fs_reads_bytes_total": ("counter", "Bytes read from block devices."),
    "container_fs_writes_bytes_total": ("counter", "Bytes written to block devices."),
    "container_start_time_seconds": ("gauge", "Unix time of the last start."),
    "container_restarts_total": ("counter", "Restarts by the engine's restart policy."),
    "container_oom_kills_total": ("counter", "Processes killed for want of memory."),
    "container_running": ("gauge", "1 while the container runs, else 0."),
    "container_health": (
        "gauge",
        "1 healthy, 0 unhealthy; absent while starting or without a health check.",
    ),
    "container_last_seen": ("gauge", "Unix time at which the engine last listed the container."),
    "container_exit_code": ("gauge", "Exit code of a container that does not run."),
    "compose_stack_release_info": ("gauge", "The slot that serves, and its image."),
    "compose_stack_release_record": (
        "gauge",
        "The last release: its number, slot, version, reason and the receipt of its switch.",
    ),
    "host_network_receive_bytes_total": ("counter", "Bytes received by a device of the host."),
    "host_network_transmit_bytes_total": ("counter", "Bytes sent by a device of the host."),
    "container_metrics_collected_timestamp_seconds": ("gauge", "Unix time of this collection."),
    "container_metrics_errors_total": ("counter", "Errors since the collector started."),
    "container_metrics_duration_seconds": ("gauge", "Seconds that this collection took."),
}


class EngineError(Exception):
    """The engine did not answer, or not with what it should."""


class NoSuchContainerError(EngineError):
    """The container went between the list and the question."""


def read(path: str) -> str:
    """A whole file in as few system calls as possible."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(fd, 65536):
            chunks.append(chunk)
    finally:
        os.close(fd)
    return b"".join(chunks).decode("utf-8", "replace")


def pairs(text: str) -> dict[str, int]:
    """Of a file with a name and a number on each line."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[1].isdigit():
            found[words[0]] = int(words[1])
    return found


def unix_time(text: str) -> float | None:
    """Of the engine's RFC 3339 time in UTC; None for its zero time."""
    match = re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(\.\d+)?Z", text)
    if match is None:
        raise ValueError(f"not a time: {text[:40]!r}")
    year, month, day, hours, minutes, seconds = (int(part) for part in match.groups()[:6])
    if year == 1:
        return None
    days = date(year, month, day).toordinal() - date(1970, 1, 1).toordinal()
    whole = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    return whole + round(float(match[7] or 0), 3)


def short_reference(image: str) -> str:
    """An image's name and tag; where there is no tag, twelve digits of its digest."""
    name, _, digest = image.partition("@")
    if ":" in name.rpartition("/")[2]:
        kind, _, digits = name.partition(":")
        return digits[:12] if kind == "sha256" and len(digits) == 64 else name
    return f"{name}@{digest[:19]}" if digest else name


def label_block(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    escaped = (
        (key, value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"'))
        for key, value in labels.items()
    )
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped) + "}"


class Page:
    """The samples of one collection; the same labels twice would spoil the whole file."""

    def __init__(self) -> None:
        self._samples: dict[str, dict[str, str]] = {name: {} for name in METRICS}

    def add(self, metric: str, value: float, labels: dict[str, str] | None = None) -> None:
        self._samples[metric][label_block(labels or {})] = repr(value)

    def text(self) -> str:
        lines = []
        for name, (kind, explanation) in METRICS.items():
            samples = self._samples[name]
            if samples:
                lines += [f"# HELP {name} {explanation}", f"# TYPE {name} {kind}"]
                lines += [f"{name}{labels} {samples[labels]}" for labels in sorted(samples)]
        return "\n".join([*lines, ""])


class Engine:
    """Reads from the engine's API. The standard library's HTTP client would double our memory."""

    def __init__(self, path: str, budget: float) -> None:
        self._path = path
        self._budget = budget
        self._deadline = 0.0

    def begin(self) -> None:
        """A collection begins: all its questions together must leave time for the next one."""
        self._deadline = time.monotonic() + self._budget

    def get(self, resource: str) -> Any:
        try:
            return json.loads(self._fetch(resource))
        except (ValueError, RecursionError) as error:
            raise EngineError(f"no JSON: {error}") from error

    def containers(self, project: str) -> list[dict[str, Any]]:
        """What the engine lists for the project, without one-offs of `docker compose run`."""
        query = self._filters({"label": [f"{LABEL}project={project}"]})
        listed = self.get(f"/containers/json?all=1&filters={query}")
        if not isinstance(listed, list):
            raise EngineError("no list of containers")
        found = []
        for item in listed:
            try:
                labels = item["Labels"]
                if labels[f"{LABEL}project"] == project:
                    oneoff = str(labels.get(f"{LABEL}oneoff", "")).lower() == "true"
                    if not oneoff:
                        found.append({"Id": str(item["Id"]), "Created": int(item["Created"])})
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise EngineError(f"no list of containers: {error!r}") from error
        # The name of a container that is being replaced is taken over by the new one.
        return sorted(found, key=lambda item: item["Created"])

    @staticmethod
    def _filters(value: dict[str, list[str]]) -> str:
        return "".join(f"%{byte:02X}" for byte in json.dumps(value).encode())

    def _fetch(self, resource: str) -> bytes:
        deadline = min(time.monotonic() + ENGINE_SECONDS, self._deadline)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self._left(deadline))
                connection.connect(self._path)
                # With HTTP/1.0 the answer is never chunked and ends where the connection does.
                connection.sendall(f"GET {resource} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
                answer = bytearray()
                while True:
                    connection.settimeout(self._left(deadline))
                    chunk = connection.recv(65536)
                    if not chunk:
                        break
                    answer += chunk
                    if len(answer) > ANSWER_LIMIT:
                        raise EngineError(f"an answer of more than {ANSWER_LIMIT >> 20} MiB")
        except OSError as error:
            # socket.timeout is an OSError without a number.
            what = os.strerror(error.errno) if error.errno else "no answer in time"
            raise EngineError(what) from error
        head, separator, body = bytes(answer).partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.[01] (\d{3})\b", head)
        if not separator or status is None:
            raise EngineError("an answer that is not HTTP")
        if status[1] == b"404":
            raise NoSuchContainerError("404")
        if status[1] != b"200":
            raise EngineError(f"HTTP status {status[1].decode()}")
        length = re.search(rb"(?im)^content-length:\s*(\d+)\s*$", head)
        if length is not None and int(length[1]) != len(body):
            raise EngineError("an answer cut short")
        return body

    @staticmethod
    def _left(deadline: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise EngineError("no answer in time")
        return left


class Cgroups:
    """Finds the cgroup directories of a container, whichever driver and version the host uses."""

    def __init__(self, procfs: str, sysfs: str) -> None:
        self._procfs = procfs
        self._sysfs = sysfs
        self._known: dict[tuple[str, int], dict[str, str]] = {}

    def find(self, container: str, pid: int) -> dict[str, str]:
        """Directories by controller; that of version 2 by the empty name."""
        key = (container, pid)
        if key not in self._known:
            self._known[key] = self._search(container, pid)
        return self._known[key]

    def keep(self, alive: set[tuple[str, int]]) -> None:
        self._known = {key: found for key, found in self._known.items() if key in alive}

    def _search(self, container: str, pid: int) -> dict[str, str]:
        found: dict[str, str] = {}
        mounts = self._mounts()
        for line in read(f"{self._procfs}/{pid}/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            # The process may have made cgroups of its own below, as systemd does.
            at = path.find(container)
            # One that does not bear the container's name: the process has gone and another has
            # its number. One with dots lies outside our cgroup namespace.
            if at < 0 or "/.." in path:
                continue
            end = path.find("/", at)
            path = path if end < 0 else path[:end]
            for controller in controllers.split(","):
                for root, directory in mounts.get(controller, ()):
                    below = path if root == "/" else path[len(root) :]
                    inside = root == "/" or path.startswith(f"{root}/")
                    if inside and os.path.isdir(directory + below):
                        found[controller] = directory + below
                        break
        if not found:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), container)
        return found

    def _mounts(self) -> dict[str, list[tuple[str, str]]]:
        """Root and mount point of each hierarchy by controller."""
        found: dict[str, list[tuple[str, str]]] = {}
        for line in read(f"{self._procfs}/self/mountinfo").splitlines():
            left, _, right = line.partition(" - ")
            kind, _, options = right.split(" ", 2)
            if kind not in ("cgroup", "cgroup2"):
                continue
            root, directory = (
                re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), word)
                for word in left.split(" ")[3:5]
            )
            if directory.startswith("/sys/"):
                directory = self._sysfs + directory[4:]
            for name in options.split(",") if kind == "cgroup" else [""]:
                found.setdefault(name, []).append((root, directory))
        return found


def cpu_seconds(cgroups: dict[str, str]) -> Iterator[tuple[str, float]]:
    if "cpuacct" in cgroups:
        used = int(read(f"{cgroups['cpuacct']}/cpuacct.usage")) / 1e9
    else:
        used = pairs(read(f"{cgroups['']}/cpu.stat"))["usage_usec"] / 1e6
    yield "container_cpu_usage_seconds_total", used


def memory(cgroups: dict[str, str]) -> Iterator[tuple[str, float]]:
    if "memory" in cgroups:
        directory = cgroups["memory"]
        usage = int(read(f"{directory}/memory.usage_in_bytes"))
        inactive = pairs(read(f"{directory}/memory.stat"))["total_inactive_file"]
    else:
        directory = cgroups[""]
        usage = int(read(f"{directory}/memory.current"))
        inactive = pairs(read(f"{directory}/memory.stat"))["inactive_file"]
    yield "container_memory_usage_bytes", usage
    yield "container_memory_working_set_bytes", max(0, usage - inactive)


def processes(cgroups: dict[str, str]) -> Iterator[tuple[str, float]]:
    directory = cgroups["pids"] if "pids" in cgroups else cgroups[""]
    yield "container_processes", int(read(f"{directory}/pids.current"))


def block_io(cgroups: dict[str, str]) -> Iterator[tuple[str, float]]:
    if "blkio" in cgroups:
        # Lines "8:0 Read 4096", and a sum without a device.
        text = read(f"{cgroups['blkio']}/blkio.throttle.io_service_bytes_recursive")
        words = [line.split() for line in text.splitlines()]
        moved = [(line[1].lower(), int(line[2])) for line in words if len(line) == 3]
        names = ("read", "write")
    else:
        # Lines "8:0 rbytes=4096 wbytes=0 rios=1 ...".
        words = [line.split()[1:] for line in read(f"{cgroups['']}/io.stat").splitlines()]
        split = [word.partition("=") for line in words for word in line]
        moved = [(name, int(value)) for name, _, value in split if value.isdigit()]
        names = ("rbytes", "wbytes")
    for metric, wanted in zip(("reads", "writes"), names):  # noqa: B905 - strict= needs 3.10
        total = sum(number for name, number in moved if name == wanted)
        yield f"container_fs_{metric}_bytes_total", total


def oom_kills(cgroups: dict[str, str]) -> int:
    """Those of the container's present run."""
    if "memory" in cgroups:
        text = read(f"{cgroups['memory']}/memory.oom_control")
    else:
        text = read(f"{cgroups['']}/memory.events")
    return pairs(text).get("oom_kill", 0)


def devices(text: str) -> Iterator[tuple[str, int, int]]:
    """Name, bytes received and bytes sent by each device of a net/dev file."""
    for line in text.splitlines()[2:]:
        name, _, numbers = line.rpartition(":")
        words = numbers.split()
        yield name.strip(), int(words[0]), int(words[8])


class KernelLog:
    """Kills that the kernel logged, by container.

    A container that ends by a kill takes its cgroup along, one that is started again at once has a
    new one, and the engine does not tell on every host: only the log has all of them.
    """

    def __init__(self, path: str) -> None:
        self._kills: dict[str, int] = {}
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            say(f"no kernel log, so kills that end a container may be missed: {error}")

    def kills(self, container: str) -> int:
        """Since the beginning of what the log holds."""
        while self._fd >= 0:
            try:
                record = os.read(self._fd, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:
                # Some were overwritten before they were read; those that are left come next.
                continue
            except OSError as error:
                say(f"no kernel log any more: {error}")
                os.close(self._fd)
                self._fd = -1
                break
            if not record:
                break
            for path in re.findall(rb"oom-kill:[^\n]*task_memcg=([^,\n]*)", record):
                # Containers may stand in containers.
                for name in re.findall(r"[0-9a-f]{64}", path.decode("ascii", "replace")):
                    self._kills[name] = self._kills.pop(name, 0) + 1
                    if len(self._kills) > 256:
                        del self._kills[next(iter(self._kills))]
        return self._kills.get(container, 0)


class Kills:
    """Kills in the containers of one name, counted on when a restart takes the cgroup away.

    Two accounts of the same kills, neither of them whole: that of the present run (the cgroup's,
    and the engine's word) and the log's. In each run the higher one counts.
    """

    def __init__(self, base: int, run: Run, in_run: int, logged: int) -> None:
        self._base = base
        self._run = run
        self._in_run = self._in_run_before = in_run
        self._logged = self._logged_before = logged

    def of(self, container: str) -> bool:
        return self._run[0] == container

    def update(self, run: Run, in_run: int, logged: int) -> int:
        if run != self._run:
            same = run[0] == self._run[0]
            if same:
                # Of what was logged since, the new run's own kills are not the old run's.
                self._logged = max(self._logged, logged - in_run)
            self._base = self._total()
            self._logged = self._logged_before = self._logged if same else 0
            self._run, self._in_run, self._in_run_before = run, 0, 0
        # Neither falls, even where the log forgets.
        self._in_run = max(self._in_run, in_run)
        self._logged = max(self._logged, logged)
        return self._total()

    def _total(self) -> int:
        in_run = self._in_run - self._in_run_before
        return self._base + max(in_run, self._logged - self._logged_before)


class Collector:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._engine = Engine(options.socket, min(10.0, options.interval * 0.8))
        self._cgroups = Cgroups(options.procfs, options.sysfs)
        self._log = KernelLog(options.kmsg)
        self._kills: dict[str, Kills] = {}
        self._earlier = self._written_before()
        self.errors = 0
        self._problems: set[str] = set()
        self._known_problems: set[str] = set()
        directory, name = os.path.split(options.output)
        # node_exporter reads *.prom alone. Two collectors never share an unfinished file.
        self.unfinished = os.path.join(directory, f".{name}.{os.getpid()}")

    def step(self) -> bool:
        """One collection, written; whether all went well. Nothing that happens in it ends us."""
        began, now = time.monotonic(), time.time()
        page = Page()
        parts: tuple[tuple[str, Callable[[], None]], ...] = (
            ("engine", lambda: self._add_containers(page, now)),
            ("release", lambda: self._add_release(page)),
            ("host", lambda: self._add_host(page)),
        )
        for name, part in parts:
            try:
                part()
            except Exception as error:  # noqa: BLE001 - see above
                self._problem(name, error)
        page.add("container_metrics_collected_timestamp_seconds", round(now, 3))
        page.add("container_metrics_errors_total", self.errors)
        page.add("container_metrics_duration_seconds", round(time.monotonic() - began, 6))
        try:
            self._write(page.text())
        except OSError as error:
            self._problem("output", error)
        return self._tell()

    def _problem(self, where: str, error: Exception) -> None:
        self.errors += 1
        self._problems.add(f"{where}: {error or repr(error)}")

    def _tell(self) -> bool:
        """Say each problem once, not every 15 seconds."""
        for text in sorted(self._problems - self._known_problems):
            say(text)
        if self._known_problems and not self._problems:
            say("all is well again")
        self._known_problems, self._problems = self._problems, set()
        return not self._known_problems

    def _write(self, text: str) -> None:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self.unfinished, flags, 0o644)
            try:
                data = text.encode("utf-8", "replace")
                while data:
                    data = data[os.write(fd, data) :]
            finally:
                os.close(fd)
            os.rename(self.unfinished, self._options.output)
        except OSError:
            with suppress(OSError):
                os.unlink(self.unfinished)
            raise

    def _add_containers(self, page: Page, now: float) -> None:
        self._engine.begin()
        listing = self._engine.containers(self._options.project)
        slot = self._active_slot()
        names: set[str] = set()
        alive: set[tuple[str, int]] = set()
        serving: dict[str, str] = {}
        for item in listing:
            container = item["Id"]
            try:
                found = self._engine.get(f"/containers/{container}/json")
                state, config = found["State"], found["Config"]
                labels = {
                    "name": str(found["Name"]).lstrip("/"),
                    "service": str(config["Labels"].get(f"{LABEL}service", "")),
                }
                status, pid = str(state["Status"]), int(state["Pid"])
                if pid > 0:
                    alive.add((container, pid))
                names.add(label_block(labels))
                self._add_container(page, labels, found)
                page.add("container_last_seen", round(now, 3), labels)
                if status == "running" and slot and labels["service"] == f"api-{slot}":
                    serving[labels["name"]] = str(config["Image"])
            except NoSuchContainerError:
                continue
            except EngineError as error:
                self._problem("engine", error)
                # Its counts are still worth keeping for the next time.
                names.update(key for key, kills in self._kills.items() if kills.of(container))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                self._problem(f"container {container[:12]}", error)
        if slot and serving:
            image = short_reference(serving[min(serving)])
            page.add("compose_stack_release_info", 1, {"slot": slot, "image": image})
        self._cgroups.keep(alive)
        self._kills = {name: kills for name, kills in self._kills.items() if name in names}
        self._earlier = {}

    def _add_container(self, page: Page, labels: dict[str, str], found: dict[str, Any]) -> None:
        state, host, container = found["State"], found["HostConfig"], str(found["Id"])
        status, pid = str(state["Status"]), int(state["Pid"])
        started = unix_time(str(state["StartedAt"]))
        in_run = 1 if state.get("OOMKilled") else 0
        if pid > 0:
            in_run = max(in_run, self._add_usage(page, labels, container, pid, host))
            page.add("container_spec_memory_limit_bytes", int(host.get("Memory") or 0), labels)
            cores = self._cores(host)
            if cores > 0:
                page.add("container_spec_cpu_quota_cores", cores, labels)
            limit = int(host.get("PidsLimit") or 0)
            if limit > 0:
                page.add("container_spec_processes_limit", limit, labels)
        kills = self._count_kills(label_block(labels), (container, started), in_run)
        page.add("container_oom_kills_total", kills, labels)
        page.add("container_restarts_total", int(found.get("RestartCount") or 0), labels)
        page.add("container_running", int(status == "running"), labels)
        if started is not None:
            page.add("container_start_time_seconds", started, labels)
        if status == "running":
            health = (state.get("Health") or {}).get("Status")
            if health in ("healthy", "unhealthy"):
                page.add("container_health", int(health == "healthy"), labels)
        elif status != "paused":
            code = int(state.get("ExitCode") or 0)
            # What was created and not started has none, unless it could not be started.
            if code or status != "created":
                page.add("container_exit_code", code, labels)

    def _add_usage(
        self, page: Page, labels: dict[str, str], container: str, pid: int, host: dict[str, Any]
    ) -> int:
        """What the kernel says; how many processes it killed. What has just gone is left out."""
        try:
            cgroups = self._cgroups.find(container, pid)
        except OSError as error:
            self._unless_gone(labels, error)
            return 0
        for reader in (cpu_seconds, memory, processes, block_io):
            try:
                for metric, value in reader(cgroups):
                    page.add(metric, value, labels)
            except OSError as error:
                self._unless_gone(labels, error)
            except KeyError as error:
                # A host may lack a controller.
                if error.args != ("",):
                    self._problem(labels["name"], error)
            except ValueError as error:
                self._problem(labels["name"], error)
        # With the host's network the container's traffic cannot be told from the host's.
        if host.get("NetworkMode") != "host":
            try:
                own = [
                    item
                    for item in devices(read(f"{self._options.procfs}/{pid}/net/dev"))
                    if item[0] != "lo"
                ]
                received, sent = sum(item[1] for item in own), sum(item[2] for item in own)
                page.add("container_network_receive_bytes_total", received, labels)
                page.add("container_network_transmit_bytes_total", sent, labels)
            except OSError as error:
                self._unless_gone(labels, error)
            except (ValueError, IndexError) as error:
                self._problem(labels["name"], error)
        try:
            return oom_kills(cgroups)
        except OSError as error:
            self._unless_gone(labels, error)
        except KeyError:
            pass
        return 0

    def _unless_gone(self, labels: dict[str, str], error: OSError) -> None:
        if error.errno not in GONE:
            self._problem(labels["name"], error)

    @staticmethod
    def _cores(host: dict[str, Any]) -> float:
        if host.get("NanoCpus"):
            return int(host["NanoCpus"]) / 1e9
        quota = int(host.get("CpuQuota") or 0)
        return max(0, quota) / int(host.get("CpuPeriod") or 100_000)

    def _count_kills(self, name: str, run: Run, in_run: int) -> int:
        logged = self._log.kills(run[0])
        if name not in self._kills:
            # A collector that starts anew goes on from what it wrote: its counter must not fall,
            # nor must the same kill count again.
            total, started = self._earlier.get(name, (0, None))
            known = total if started == run[1] else total + in_run
            self._kills[name] = Kills(max(known, in_run, logged), run, in_run, logged)
        return self._kills[name].update(run, in_run, logged)

    def _written_before(self) -> dict[str, tuple[int, float | None]]:
        """Kills and start time by labels, from the file that an earlier collector left."""
        found: dict[str, dict[str, float]] = {"oom_kills_total": {}, "start_time_seconds": {}}
        try:
            text = read(self._options.output)
        except OSError:
            return {}
        for line in text.splitlines():
            match = re.fullmatch(r"container_(\w+)(\{.*\}) ([0-9.]+)", line)
            if match and match[1] in found:
                with suppress(ValueError):
                    found[match[1]][match[2]] = float(match[3])
        return {
            name: (int(total), found["start_time_seconds"].get(name))
            for name, total in found["oom_kills_total"].items()
        }

    def _active_slot(self) -> str:
        if self._options.active_link is None:
            return ""
        try:
            target = os.readlink(str(self._options.active_link))
        except OSError:
            return ""
        return os.path.basename(target.rstrip("/"))

    def _add_release(self, page: Page) -> None:
        if self._options.releases is None or not os.path.isdir(self._options.releases):
            return
        numbers = [int(name) for name in os.listdir(self._options.releases) if name.isdecimal()]
        if not numbers:
            return
        record = json.loads(read(f"{self._options.releases}/{max(numbers)}/release.json"))
        phases = [
            record["receipt"][name] for name in ("before", "after") if name in record["receipt"]
        ]
        slowest = [phase["slowest_ms"] for phase in phases if phase["slowest_ms"] is not None]
        labels = {
            "release": str(record["number"]),
            "slot": str(record["slot"] or ""),
            "version": str(record["version"]),
            "why": str(record["why"])[:100],
            "probes": str(sum(phase["sent"] for phase in phases)),
            "failed": str(sum(phase["failed"] for phase in phases)),
            "slowest_ms": f"{max(slowest, default=0):.0f}",
        }
        page.add("compose_stack_release_record", 1, labels)

    def _add_host(self, page: Page) -> None:
        for name, received, sent in devices(read(f"{self._options.procfs}/net/dev")):
            if not DOCKER_DEVICE.fullmatch(name):
                page.add("host_network_receive_bytes_total", received, {"device": name})
                page.add("host_network_transmit_bytes_total", sent, {"device": name})


class Program:
    """This very file, which a release replaces while it runs."""

    def __init__(self) -> None:
        # Not the resolved path: the link that a release swaps is a part of it.
        self._path = os.path.abspath(__file__)
        self._refused = self._loaded = self._identity()

    def _identity(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns

    @property
    def withdrawn(self) -> bool:
        """Whether the room was taken away: the link is swapped in one step and never absent."""
        return self._loaded is not None and self._identity() is None

    def renew(self) -> None:
        """Become the new version when there is one that can start."""
        identity = self._identity()
        if identity is None or identity in (self._loaded, self._refused):
            return
        self._refused = identity
        # With SIGTERM held back, none can come before the new version answers to it.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            # A file that does not even compile would end us and never start again.
            compile(read(self._path), self._path, "exec", dont_inherit=True)
            arguments = getattr(sys, "orig_argv", [sys.executable, *sys.argv])[1:]
            os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - ourselves
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def say(text: str) -> None:
    # Without a terminal or journal there is nobody to tell, which is no reason to end.
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"container_metrics: {text}\n")
        sys.stderr.flush()


def until_next(now: float, interval: float) -> float:
    """Seconds until the next multiple of the interval, whatever the clock was set to meanwhile."""
    left = interval - now % interval
    # Woken a hair too early, not twice for one multiple.
    return left + interval if left < min(0.1, interval / 20) else left


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="container_metrics.py",
        description="Write metrics of a Compose project's containers for node_exporter.",
    )
    parser.add_argument("--project", required=True, help="name of the Compose project")
    parser.add_argument("--output", required=True, metavar="FILE.prom", help="file to write")
    parser.add_argument(
        "--interval", type=float, default=15, metavar="SECONDS", help="1 to 3600 (default: 15)"
    )
    parser.add_argument(
        "--once", action="store_true", help="collect once; exit status 1 on any error"
    )
    parser.add_argument("--active-link", metavar="PATH", help="link to the slot that serves")
    parser.add_argument("--releases", metavar="PATH", help="directory that releases are kept in")
    parser.add_argument(
        "--socket", default="/var/run/docker.sock", metavar="PATH", help="the engine's socket"
    )
    parser.add_argument("--sysfs", default="/sys", metavar="PATH", help="default: /sys")
    parser.add_argument("--procfs", default="/proc", metavar="PATH", help="default: /proc")
    parser.add_argument(
        "--kmsg", default="/dev/kmsg", metavar="PATH", help="the kernel's log (default: /dev/kmsg)"
    )
    options = parser.parse_args(arguments)
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", options.project):
        parser.error(f"--project: no name of a Compose project: {options.project!r}")
    if not options.output.endswith(".prom"):
        parser.error(f"--output: node_exporter reads only names in .prom: {options.output!r}")
    options.output = os.path.abspath(options.output)
    directory = os.path.dirname(options.output)
    if not os.path.isdir(directory):
        parser.error(f"--output: no such directory: {directory}")
    # Also refuses nan.
    if not 1 <= options.interval <= 3600:
        parser.error(f"--interval: 1 to 3600 seconds, not {options.interval:g}")
    for name in ("sysfs", "procfs"):
        path = getattr(options, name).rstrip("/")
        if not os.path.isdir(path):
            parser.error(f"--{name}: no such directory: {path}")
        setattr(options, name, path)
    if len(os.fsencode(options.socket)) > 107:
        parser.error(f"--socket: longer than the 107 bytes a socket may have: {options.socket}")
    return options


def main(arguments: list[str] | None = None) -> int:
    program = Program()
    options = options_of(arguments)
    # The exporter that reads the file is another user.
    os.umask(0o022)
    collector = Collector(options)

    def stop(_number: int, _frame: object) -> NoReturn:
        with suppress(OSError):
            os.unlink(collector.unfinished)
        os._exit(0)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    well = collector.step()
    while not options.once:
        time.sleep(until_next(time.time(), options.interval))
        if program.withdrawn:
            say("this program was removed, and what it wrote goes with it")
            with suppress(OSError):
                os.unlink(options.output)
            return 0
        try:
            program.renew()
        except Exception as error:  # noqa: BLE001 - the version that runs is better than none
            collector.errors += 1
            say(f"the new version cannot start, the old one stays: {error or repr(error)}")
        collector.step()
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
