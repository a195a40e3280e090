"""The collector of container metrics: against recorded answers and files, and a real engine.

BM-6: the figures of every container. CS-10: without a doubtful line that would spoil the scrape.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import errno
import itertools
import json
import os
import re
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from roles.host.templates.bin import container_metrics as cm
from tests.harness import ROOT, Engine, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

SCRIPT = ROOT / "roles" / "host" / "templates" / "bin" / "container_metrics.py"
UNIT = ROOT / "roles" / "host" / "templates" / "systemd" / "container-metrics.service.j2"
RECORDED = Path(__file__).parent / "engine"
PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
# What names and dashboards are written against.
USAGE = {
    "container_cpu_usage_seconds_total",
    "container_memory_working_set_bytes",
    "container_memory_usage_bytes",
    "container_processes",
    "container_network_receive_bytes_total",
    "container_network_transmit_bytes_total",
    "container_fs_reads_bytes_total",
    "container_fs_writes_bytes_total",
}
LIMITS = {
    "container_spec_memory_limit_bytes",
    "container_spec_cpu_quota_cores",
    "container_spec_processes_limit",
}
STATE = {
    "container_start_time_seconds",
    "container_restarts_total",
    "container_oom_kills_total",
    "container_running",
    "container_health",
    "container_last_seen",
    "container_exit_code",
}
ITSELF = {
    "container_metrics_collected_timestamp_seconds",
    "container_metrics_errors_total",
    "container_metrics_duration_seconds",
}
HOST = {"host_network_receive_bytes_total", "host_network_transmit_bytes_total"}


# --- Reading what was written, as strictly as node_exporter does.

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
PAIR = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"'
SAMPLE = re.compile(
    rf"({NAME})(?:\{{({PAIR}(?:,{PAIR})*)\}})? (-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)"
)
UNESCAPED = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """The samples of a file that breaks no rule of the text format."""

    def __init__(self, text: str) -> None:
        assert text.endswith("\n")
        self.types: dict[str, str] = {}
        self.samples: dict[tuple[str, Labels], float] = {}
        helped: list[str] = []
        for line in text[:-1].split("\n"):
            if line.startswith("# HELP "):
                name, _, explanation = line[7:].partition(" ")
                assert explanation, line
                assert name not in helped, "a family in two pieces"
                helped.append(name)
            elif line.startswith("# TYPE "):
                name, kind = line[7:].split(" ")
                assert name == helped[-1], line
                assert kind in {"counter", "gauge"}, line
                assert (kind == "counter") == name.endswith("_total"), line
                self.types[name] = kind
            else:
                match = SAMPLE.fullmatch(line)
                assert match is not None, line
                assert match[1] == helped[-1], line
                assert match[1] in self.types, line
                labels = tuple(
                    (key, re.sub(r'\\[\\"n]', lambda escape: UNESCAPED[escape[0]], value))
                    for key, value in re.findall(PAIR, match[2] or "")
                )
                assert (match[1], labels) not in self.samples, f"twice: {line}"
                self.samples[match[1], labels] = float(match.group(match.lastindex or 0))

    def of(self, service: str, number: int = 1) -> dict[str, float]:
        """The samples of one container, each of which bears exactly name and service."""
        return {
            name: value
            for (name, labels), value in self.samples.items()
            if dict(labels).get("service") == service
            and tuple(key for key, _ in labels) == ("name", "service")
            and labels[0][1].endswith(f"-{service}-{number}")
        }

    def value(self, name: str, **labels: str) -> float:
        return self.samples[name, tuple(labels.items())]

    def names(self) -> set[str]:
        return {name for name, _ in self.samples}

    @property
    def services(self) -> set[str]:
        found = {dict(labels).get("service") for _, labels in self.samples}
        return {service for service in found if service}


# --- An engine of paper.


class Paper:
    """Answers on a socket as the engine's recorded answers do."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.containers: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        # Whole answers instead of the right ones, by the beginning of the path.
        self.raw: dict[str, bytes] = {}
        self.delay = 0.0
        self._list = json.loads((RECORDED / "list.json").read_text())[0]
        self._inspect = json.loads((RECORDED / "inspect.json").read_text())
        self._server: socketserver.ThreadingUnixStreamServer | None = None

    def add(self, service: str, pid: int = 0, **state: Any) -> dict[str, Any]:
        """A container; running when it has a process."""
        item: dict[str, Any] = copy.deepcopy(self._inspect)
        item["Id"] = f"{len(self.containers) + 1:064x}"
        item["Name"] = f"/compose-stack-{service}-1"
        item["Config"]["Labels"]["com.docker.compose.service"] = service
        item["State"].update(Pid=pid, Status="running" if pid else "exited", **state)
        if not pid:
            item["State"]["Health"]["Status"] = "unhealthy"
        self.containers[item["Id"]] = item
        return item

    def start(self) -> None:
        paper = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                paper.asked.append(self.path)
                time.sleep(paper.delay)
                for path, answer in paper.raw.items():
                    if self.path.startswith(path):
                        with contextlib.suppress(BrokenPipeError):
                            self.wfile.write(answer)
                        return
                answer = paper._answer(self.path)
                self.send_response(200 if answer else 404)
                self.end_headers()
                self.wfile.write(answer or b'{"message":"No such container"}')

            def address_string(self) -> str:
                return "socket"

            def log_message(self, *_: Any) -> None:
                pass

        self._server = socketserver.ThreadingUnixStreamServer(str(self.socket), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self.socket.unlink()
            self._server = None

    def _answer(self, path: str) -> bytes:
        parts = urlsplit(path)
        query = {key: value[0] for key, value in parse_qs(parts.query).items()}
        filters = json.loads(query.get("filters", "{}"))
        if parts.path == "/containers/json":
            assert query["all"] == "1"
            wanted = [text.partition("=") for text in filters["label"]]
            return json.dumps(
                [
                    self._listed(item)
                    for item in self.containers.values()
                    if all(item["Config"]["Labels"].get(key) == text for key, _, text in wanted)
                ]
            ).encode()
        item = self.containers.get(parts.path.split("/")[2])
        return json.dumps(item).encode() if item else b""

    def _listed(self, item: dict[str, Any]) -> dict[str, Any]:
        listed: dict[str, Any] = copy.deepcopy(self._list)
        listed.update(Id=item["Id"], Names=[item["Name"]], State=item["State"]["Status"])
        listed.update(Labels=item["Config"]["Labels"], Created=int(item["Id"], 16))
        return listed


# --- A kernel of paper.

NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:   16212     210    0    0    0     0          0         0    16212     210    0    0    0     0       0          0
  eth0:    2883      28    0    0    0     0          0         0     2286      11    0    0    0     0       0          0
  eth1:     100       1    0    0    0     0          0         0       30       1    0    0    0     0       0          0
"""  # noqa: E501 - as the kernel writes it
HOST_DEV = NET_DEV.replace("eth1", "br-8f56a8770a03").replace("16212", "6428") + (
    "veth27f3448:    5126      76    0    0    0     0          0         0     8814"
    "     121    0    0    0     0       0          0\n"
)
V1 = ("cpuset", "cpu", "cpuacct", "blkio", "memory", "pids")
STAT_V1 = """\
cache 442368
rss 5074944
inactive_file 1
hierarchical_memory_limit 134217728
total_cache 442368
total_inactive_file 32768
total_active_file 278528
"""
STAT_V2 = """\
anon 5189632
file 442368
kernel 1134592
kernel_stack 65536
pagetables 131072
sec_pagetables 0
percpu 3520
sock 0
vmalloc 0
shmem 131072
file_mapped 126976
inactive_anon 5189632
active_anon 16384
inactive_file 32768
active_file 278528
unevictable 0
slab_reclaimable 412160
pgfault 19340
"""


class Kernel:
    """Fixture trees as /proc and /sys are, of either version of cgroups."""

    def __init__(self, directory: Path, version: int) -> None:
        self.version = version
        self.proc = directory / "proc"
        self.sys = directory / "sys"
        self.cgroup = self.sys / "fs" / "cgroup"
        self.log = directory / "kmsg"
        self.log.write_text("6,1,0,-;Linux version 6.18\n")
        (self.proc / "net").mkdir(parents=True)
        (self.proc / "self").mkdir()
        self.cgroup.mkdir(parents=True)
        (self.proc / "net" / "dev").write_text(HOST_DEV)
        common = "23 0 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
        if version == 1:
            mounts = "".join(
                f"{32 + i} 31 0:{29 + i} / /sys/fs/cgroup/{name} rw,relatime shared:{9 + i} - "
                f"cgroup cgroup rw,{name}\n"
                for i, name in enumerate(["cpu,cpuacct", *V1[3:]])
            )
            mounts += "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
        else:
            mounts = (
                "31 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 "
                "cgroup2 rw,nsdelegate,memory_recursiveprot\n"
            )
        (self.proc / "self" / "mountinfo").write_text(common + mounts)

    def mounted(self, text: str, replacement: str) -> None:
        path = self.proc / "self" / "mountinfo"
        assert text in path.read_text()
        path.write_text(path.read_text().replace(text, replacement))

    def run(self, item: dict[str, Any], *, path: str = "", below: str = "") -> dict[str, Path]:
        """The files of a container's process, in the cgroup of its driver."""
        pid, container = item["State"]["Pid"], item["Id"]
        if not path:
            scope = f"/system.slice/docker-{container}.scope"
            path = f"/docker/{container}" if self.version == 1 else scope
        process = self.proc / str(pid)
        (process / "net").mkdir(parents=True)
        (process / "net" / "dev").write_text(NET_DEV)
        if self.version == 1:
            groups = ["cpu,cpuacct", *V1[3:]]
            lines = [f"{9 - i}:{name}:{path}{below}" for i, name in enumerate(groups)]
            text = "\n".join([f"12:name=systemd:{path}{below}", *lines, f"0::{path}{below}", ""])
            found = {name: self.cgroup / name / path[1:] for name in groups}
            files = {
                found["cpu,cpuacct"] / "cpuacct.usage": "1221901751\n",
                found["memory"] / "memory.usage_in_bytes": "6266880\n",
                found["memory"] / "memory.stat": STAT_V1,
                found["memory"] / "memory.oom_control": (
                    "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n"
                ),
                found["pids"] / "pids.current": "4\n",
                found["blkio"] / "blkio.throttle.io_service_bytes_recursive": (
                    "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 12288\n8:0 Async 0\n8:0 Discard 0\n"
                    "8:0 Total 12288\n254:0 Read 1000\n254:0 Write 2000\nTotal 15288\n"
                ),
            }
            found["oom"] = found["memory"] / "memory.oom_control"
        else:
            text = f"0::{path}{below}\n"
            found = {"": self.cgroup / path[1:]}
            files = {
                found[""] / "cpu.stat": (
                    "usage_usec 1221901\nuser_usec 1000000\nsystem_usec 221901\n"
                    "nr_periods 12\nnr_throttled 0\nthrottled_usec 0\n"
                ),
                found[""] / "memory.current": "6266880\n",
                found[""] / "memory.stat": STAT_V2,
                found[""] / "memory.events": (
                    "low 0\nhigh 0\nmax 12\noom 3\noom_kill 0\noom_group_kill 0\n"
                ),
                found[""] / "pids.current": "4\n",
                # The kernel writes a device without figures too.
                found[""] / "io.stat": (
                    "7:0 \n8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=5 dios=1\n"
                    "254:0 rbytes=1000 wbytes=2000 rios=1 wios=1 dbytes=0 dios=0\n"
                ),
            }
            found["oom"] = found[""] / "memory.events"
        (process / "cgroup").write_text(text)
        for file, content in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        return found

    def end(self, item: dict[str, Any], found: dict[str, Path]) -> None:
        """The process and its cgroups go."""
        shutil.rmtree(self.proc / str(item["State"]["Pid"]))
        for path in found.values():
            if path.is_dir():
                shutil.rmtree(path)

    def killed(self, item: dict[str, Any], found: dict[str, Path]) -> None:
        """One more, in the cgroup's account and in the log's."""
        self.logged(item)
        text = found["oom"].read_text()
        one_more = re.sub(r"oom_kill (\d+)", lambda old: f"oom_kill {int(old[1]) + 1}", text)
        found["oom"].write_text(one_more)

    def logged(self, item: dict[str, Any]) -> None:
        if self.log.exists():
            path = f"/docker/{item['Id']}"
            with self.log.open("a") as log:
                log.write(
                    "4,900,1681646405,-;tail invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL)\n"
                    "6,944,1681646405,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),"
                    f"cpuset={item['Id']},mems_allowed=0,oom_memcg={path},task_memcg={path},"
                    "task=tail,pid=14175,uid=0\n"
                )


class Scene:
    """A collector between the two."""

    def __init__(self, directory: Path, version: int) -> None:
        self.directory = directory
        self.kernel = Kernel(directory, version)
        self.engine = Paper(directory / "docker.sock")
        self.output = directory / "metrics" / "containers.prom"
        self.output.parent.mkdir()
        self.active = directory / "active"
        self.releases = directory / "releases"
        self._collector: cm.Collector | None = None

    @property
    def arguments(self) -> list[str]:
        return [
            "--project=compose-stack", f"--output={self.output}", f"--socket={self.engine.socket}",
            f"--sysfs={self.kernel.sys}", f"--procfs={self.kernel.proc}",
            f"--active-link={self.active}", f"--releases={self.releases}",
            f"--kmsg={self.kernel.log}",
        ]  # fmt: skip

    def released(self, number: int, **facts: Any) -> None:
        """Keep the record of a release."""
        directory = self.releases / str(number)
        directory.mkdir(parents=True)
        record = {"number": number, "slot": "green", "version": "1.2", "why": "", "receipt": {}}
        (directory / "release.json").write_text(json.dumps(record | facts))

    @property
    def collector(self) -> cm.Collector:
        if self._collector is None:
            self._collector = cm.Collector(cm.options_of(self.arguments))
        return self._collector

    def restart(self) -> None:
        self._collector = None

    def step(self, *, well: bool = True) -> Metrics:
        assert self.collector.step() is well
        return self.read()

    def read(self) -> Metrics:
        return Metrics(self.output.read_text())

    def running(
        self, service: str, pid: int, **state: Any
    ) -> tuple[dict[str, Any], dict[str, Path]]:
        item = self.engine.add(service, pid, **state)
        return item, self.kernel.run(item)


@pytest.fixture(params=[1, 2], ids=["cgroup-v1", "cgroup-v2"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path, request.param)
    made.engine.start()
    yield made
    made.engine.stop()


# --- What is written.


def test_every_figure_of_a_running_container(scene: Scene) -> None:
    """BM-6: the same figures from the files of either version of cgroups."""
    before = time.time()
    scene.running("nginx", 101)
    metrics = scene.step()
    found = metrics.of("nginx")
    assert before - 1 <= found.pop("container_last_seen") <= time.time()
    cpu = found.pop("container_cpu_usage_seconds_total")
    assert cpu == (1.221901751 if scene.kernel.version == 1 else 1.221901)
    assert found == {
        "container_memory_usage_bytes": 6266880,
        "container_memory_working_set_bytes": 6266880 - 32768,
        "container_spec_memory_limit_bytes": 192 << 20,
        "container_spec_cpu_quota_cores": 0.5,
        "container_processes": 4,
        "container_spec_processes_limit": 64,
        "container_network_receive_bytes_total": 2983,
        "container_network_transmit_bytes_total": 2316,
        "container_fs_reads_bytes_total": 5096,
        "container_fs_writes_bytes_total": 10192,
        "container_start_time_seconds": 1795566006.364,
        "container_restarts_total": 0,
        "container_oom_kills_total": 0,
        "container_running": 1,
        "container_health": 1,
    }
    assert metrics.value("container_metrics_errors_total") == 0
    assert before - 1 <= metrics.value("container_metrics_collected_timestamp_seconds")
    assert 0 < metrics.value("container_metrics_duration_seconds") < 5


def test_the_metrics_agreed_on_and_no_other(scene: Scene) -> None:
    """BM-6, CS-10: rules and dashboards are written against these names."""
    scene.running("api-blue", 101)
    scene.engine.add("migrate-blue")
    scene.active.symlink_to("blue")
    scene.released(1)
    names = scene.step().names()
    release = {"compose_stack_release_info", "compose_stack_release_record"}
    assert names == USAGE | LIMITS | STATE | ITSELF | HOST | release == set(cm.METRICS)


def test_a_stopped_container(scene: Scene) -> None:
    """BM-6: says how it ended, and nothing of what it no longer uses."""
    scene.engine.add("job", ExitCode=3)
    found = scene.step().of("job")
    assert found["container_exit_code"] == 3
    assert found["container_running"] == 0
    assert set(found) == STATE - {"container_health"}


def test_a_container_never_started(scene: Scene) -> None:
    """BM-6: has neither a start nor an exit code, unless it could not be started."""
    never = "0001-01-01T00:00:00Z"
    created = scene.engine.add("job", StartedAt=never)
    created["State"]["Status"] = "created"
    found = scene.step().of("job")
    assert set(found) == STATE - {
        "container_health",
        "container_start_time_seconds",
        "container_exit_code",
    }
    created["State"]["ExitCode"] = 127
    assert scene.step().of("job")["container_exit_code"] == 127


@pytest.mark.parametrize(
    ("health", "value"), [("healthy", 1), ("unhealthy", 0), ("starting", None), (None, None)]
)
def test_health(scene: Scene, health: str | None, value: int | None) -> None:
    """CS-6: absent while nobody knows."""
    item, _ = scene.running("nginx", 101)
    if health is None:
        del item["State"]["Health"]
    else:
        item["State"]["Health"]["Status"] = health
    assert scene.step().of("nginx").get("container_health") == value


def test_a_container_without_limits(scene: Scene) -> None:
    """FS-6: 0 for no memory limit; no limit that a ratio would divide by for the others."""
    item, _ = scene.running("nginx", 101)
    item["HostConfig"].update(Memory=0, NanoCpus=0, PidsLimit=None)
    found = scene.step().of("nginx")
    assert found["container_spec_memory_limit_bytes"] == 0
    assert set(found) & LIMITS == {"container_spec_memory_limit_bytes"}
    item["HostConfig"].update(CpuQuota=150000, CpuPeriod=100000)
    assert scene.step().of("nginx")["container_spec_cpu_quota_cores"] == 1.5


def test_other_projects_and_one_offs_are_left_out(scene: Scene) -> None:
    """BM-6: `docker compose run` comes and goes, and another project is somebody else's."""
    scene.running("nginx", 101)
    oneoff, _ = scene.running("shell", 102)
    oneoff["Config"]["Labels"]["com.docker.compose.oneoff"] = "True"
    other, _ = scene.running("foreign", 103)
    other["Config"]["Labels"]["com.docker.compose.project"] = "other"
    assert scene.step().services == {"nginx"}


def test_a_name_is_never_written_twice(scene: Scene) -> None:
    """CS-10: one line twice, and node_exporter drops the whole file; the newer container counts."""
    scene.running("nginx", 101)
    newer, _ = scene.running("nginx", 102)
    newer["RestartCount"] = 7
    assert scene.step().of("nginx")["container_restarts_total"] == 7


def test_host_network_without_dockers_devices(scene: Scene) -> None:
    """BM-6: these come and go with containers and repeat what the real ones carry."""
    metrics = scene.step()
    devices = {dict(labels)["device"] for name, labels in metrics.samples if name in HOST}
    assert devices == {"eth0"}
    assert metrics.value("host_network_receive_bytes_total", device="eth0") == 2883
    assert metrics.value("host_network_transmit_bytes_total", device="eth0") == 2286


def test_traffic_of_a_container_in_the_hosts_network_is_not_the_containers(scene: Scene) -> None:
    """BM-6."""
    item, _ = scene.running("nginx", 101)
    item["HostConfig"]["NetworkMode"] = "host"
    assert not any("network" in name for name in scene.step().of("nginx"))


def test_order_is_stable(scene: Scene) -> None:
    """CS-10: two collections of the same differ in times alone."""
    for number, service in enumerate(("redis", "api-blue", "nginx")):
        scene.running(service, 101 + number)
    scene.step()
    first = scene.output.read_text()
    scene.engine.containers = dict(reversed(scene.engine.containers.items()))
    scene.step()
    words = [
        [line.rpartition(" ")[0] for line in text.splitlines()]
        for text in (first, scene.output.read_text())
    ]
    assert words[0] == words[1]
    assert words[0].index('container_running{name="compose-stack-api-blue-1",service="api-blue"}')


@given(st.dictionaries(st.from_regex(r"\A[a-z_]+\Z"), st.text(), max_size=4))
def test_labels_read_back_as_they_were(labels: dict[str, str]) -> None:
    """CS-10: whatever text a label has, it is one line and means the same again."""
    page = cm.Page()
    page.add("container_running", 1, labels)
    text = page.text().encode("utf-8", "replace").decode()
    expected = {key: value.encode("utf-8", "replace").decode() for key, value in labels.items()}
    assert Metrics(text).samples == {("container_running", tuple(expected.items())): 1}


@given(st.datetimes(timezones=st.just(UTC)).filter(lambda moment: moment.year >= 1970))
def test_times(moment: datetime) -> None:
    """BM-6: the engine's times, with any number of digits after the point."""
    text = moment.isoformat().replace("+00:00", "Z")
    assert cm.unix_time(text) == pytest.approx(moment.timestamp(), abs=0.0006)


REGISTRY = "registry.example:5000/team"
DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("image", "short"),
    [
        ("compose-stack/api:483d967a088e", "compose-stack/api:483d967a088e"),
        (f"{REGISTRY}/api:1.2@sha256:{DIGEST}", f"{REGISTRY}/api:1.2"),
        (f"{REGISTRY}/api@sha256:{DIGEST}", f"{REGISTRY}/api@sha256:{DIGEST[:12]}"),
        (f"{REGISTRY}/api", f"{REGISTRY}/api"),
        (f"sha256:{DIGEST}", DIGEST[:12]),
    ],
)
def test_short_references(image: str, short: str) -> None:
    """BM-10: what a person recognises a release by."""
    assert cm.short_reference(image) == short


def test_the_release_that_serves(scene: Scene) -> None:
    """BM-10: slot and image; nothing while no link or no container says so."""
    blue, files = scene.running("api-blue", 101)
    green, _ = scene.running("api-green", 102)
    blue["Config"]["Image"] = "compose-stack/api:old"
    green["Config"]["Image"] = "compose-stack/api:new"
    name = "compose_stack_release_info"
    assert name not in scene.step().names()
    scene.active.symlink_to("blue")
    assert scene.step().value(name, slot="blue", image="compose-stack/api:old") == 1
    scene.active.unlink()
    scene.active.symlink_to("green/")
    assert scene.step().value(name, slot="green", image="compose-stack/api:new") == 1
    scene.active.unlink()
    scene.active.symlink_to("blue")
    scene.kernel.end(blue, files)
    blue["State"].update(Status="exited", Pid=0)
    assert name not in scene.step().names()


def test_the_last_release(scene: Scene) -> None:
    """BM-10, CS-11: with the receipt of its switch, which dashboards mark."""
    name = "compose_stack_release_record"
    assert name not in scene.step().names()
    before = {"sent": 20, "failed": 0, "slowest_ms": 10.4}
    after = {"sent": 100, "failed": 1, "slowest_ms": 27.6}
    scene.released(9, receipt={"before": before, "after": after}, why='a "faster" search')
    scene.released(10)
    (scene.releases / ".11").mkdir()
    labels = {"slot": "green", "version": "1.2"}
    found = scene.step()
    nothing = {"probes": "0", "failed": "0", "slowest_ms": "0"}
    assert found.value(name, release="10", **labels, why="", **nothing) == 1
    shutil.rmtree(scene.releases / "10")
    found = scene.step()
    receipt = {"probes": "120", "failed": "1", "slowest_ms": "28"}
    why = 'a "faster" search'
    assert found.value(name, release="9", **labels, why=why, **receipt) == 1


# --- Where cgroups are.


@pytest.mark.parametrize("driver", ["cgroupfs", "systemd"])
def test_cgroups_of_either_driver(scene: Scene, driver: str) -> None:
    """BM-6: and of a process that made cgroups of its own below, as systemd in a container does."""
    item = scene.engine.add("nginx", 101)
    path = (
        f"/docker/{item['Id']}" if driver == "cgroupfs" else f"/a.slice/docker-{item['Id']}.scope"
    )
    scene.kernel.run(item, path=path, below="/init.scope")
    assert set(scene.step().of("nginx")) >= USAGE


def test_cgroups_inside_a_container_host(scene: Scene) -> None:
    """CS-1: a mount that shows a part of the hierarchy only, at a path with a space."""
    outer = "/docker/" + "f" * 64
    item = scene.engine.add("nginx", 101)
    scene.kernel.run(item, path=f"/docker/{item['Id']}")
    target = str(scene.kernel.proc / "101" / "cgroup")
    text = Path(target).read_text()
    Path(target).write_text(text.replace("/docker/", f"{outer}/docker/"))
    moved = scene.directory / "my cgroups"
    scene.kernel.cgroup.rename(moved)
    octal = str(moved).replace(" ", "\\040")
    scene.kernel.mounted(" / /sys/fs/cgroup", f" {outer} {octal}")
    assert set(scene.step().of("nginx")) >= USAGE


def test_a_process_that_is_no_longer_the_containers(scene: Scene) -> None:
    """BM-6: its number was given to another; nothing of the other is counted."""
    item = scene.engine.add("nginx", 101)
    other = copy.deepcopy(item)
    other["Id"] = "e" * 64
    scene.kernel.run(other)
    found = scene.step().of("nginx")
    assert not set(found) & USAGE - {
        "container_network_receive_bytes_total",
        "container_network_transmit_bytes_total",
    }
    assert found["container_running"] == 1


def test_a_host_without_some_controllers(tmp_path: Path) -> None:
    """BM-6: what the kernel does not count is absent, and no error."""
    scene = Scene(tmp_path, 1)
    scene.engine.start()
    scene.running("nginx", 101)
    path = scene.kernel.proc / "101" / "cgroup"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if "memory" in line or "cpuacct" in line))
    found = scene.step().of("nginx")
    assert "container_memory_usage_bytes" in found
    assert "container_cpu_usage_seconds_total" in found
    assert "container_processes" not in found
    assert "container_fs_reads_bytes_total" not in found
    scene.engine.stop()


# --- Out of memory.


def kills(scene: Scene, service: str = "nginx") -> float:
    return scene.step().of(service)["container_oom_kills_total"]


def restarted(scene: Scene, item: dict[str, Any], files: dict[str, Path]) -> dict[str, Path]:
    """The same container in a new run, with new cgroups."""
    scene.kernel.end(item, files)
    state = item["State"]
    minute = int(state["StartedAt"][14:16]) + 1
    started = f"2026-11-25T00:{minute}:00.25Z"
    state.update(Pid=state["Pid"] + 1, OOMKilled=False, StartedAt=started)
    return scene.kernel.run(item)


@pytest.fixture(params=[True, False], ids=["log", "no log"])
def log(request: pytest.FixtureRequest, scene: Scene) -> bool:
    """Whether the kernel's log can be read."""
    if not request.param:
        scene.kernel.log.unlink()
    return bool(request.param)


def test_kills_are_counted_on_across_restarts(scene: Scene, log: bool) -> None:
    """FS-6: the cgroup that counts them goes with each restart, the counter never falls."""
    item, files = scene.running("nginx", 101)
    assert kills(scene) == 0
    scene.kernel.killed(item, files)
    scene.kernel.killed(item, files)
    assert kills(scene) == 2
    item["State"]["OOMKilled"] = True
    assert kills(scene) == 2, "the same kills once more"
    files = restarted(scene, item, files)
    assert kills(scene) == 2
    scene.kernel.killed(item, files)
    assert kills(scene) == 3
    files = restarted(scene, item, files)
    scene.kernel.killed(item, files)
    assert [kills(scene), kills(scene)] == [4, 4]


def test_a_kill_that_ended_the_container(scene: Scene, log: bool) -> None:
    """FS-6: by the time anybody looks, the cgroup is gone; engine and log tell, and it is one."""
    item, files = scene.running("nginx", 101)
    assert kills(scene) == 0
    scene.kernel.killed(item, files)
    scene.kernel.end(item, files)
    item["State"].update(Pid=0, Status="exited", ExitCode=137, OOMKilled=True)
    assert [kills(scene), kills(scene)] == [1, 1]


def test_a_kill_that_the_engine_keeps_to_itself(scene: Scene) -> None:
    """FS-6: as it does on hosts with version 1 of cgroups."""
    item, files = scene.running("nginx", 101)
    assert kills(scene) == 0
    scene.kernel.logged(item)
    scene.kernel.end(item, files)
    item["State"].update(Pid=0, Status="exited", ExitCode=137, OOMKilled=False)
    assert [kills(scene), kills(scene)] == [1, 1]


def test_a_kill_between_two_looks(scene: Scene) -> None:
    """FS-6: killed and started again at once, neither state nor cgroup shows it; the log does."""
    item, files = scene.running("nginx", 101)
    other, _ = scene.running("redis", 201)
    assert kills(scene) == 0
    scene.kernel.logged(item)
    files = restarted(scene, item, files)
    scene.kernel.logged(item)
    files = restarted(scene, item, files)
    # One in the new run, which both accounts have.
    scene.kernel.killed(item, files)
    scene.kernel.logged(other)
    assert [kills(scene), kills(scene)] == [3, 3]
    assert kills(scene, "redis") == 1


def test_more_kills_than_the_log_has(scene: Scene) -> None:
    """FS-6: the kernel logs no more than ten in five seconds."""
    item, files = scene.running("nginx", 101)
    assert kills(scene) == 0
    scene.kernel.killed(item, files)
    text = files["oom"].read_text().replace("oom_kill 1", "oom_kill 40")
    files["oom"].write_text(text)
    assert kills(scene) == 40
    files = restarted(scene, item, files)
    assert kills(scene) == 40
    scene.kernel.logged(item)
    assert kills(scene) == 41


def test_a_container_in_place_of_another(scene: Scene, log: bool) -> None:
    """FS-6: a release makes a new container of the same name; what was counted is not lost."""
    item, files = scene.running("nginx", 101)
    scene.kernel.killed(item, files)
    assert kills(scene) == 1
    scene.kernel.end(item, files)
    del scene.engine.containers[item["Id"]]
    item = scene.engine.add("nginx", 102)
    item["Id"] = "c" * 64
    scene.engine.containers = {item["Id"]: item}
    files = scene.kernel.run(item)
    assert kills(scene) == 1
    scene.kernel.killed(item, files)
    assert kills(scene) == 2


def test_a_collector_that_starts_anew_goes_on_counting(scene: Scene, log: bool) -> None:
    """FS-6: a release of the collector is no kill, and no fall of the counter."""
    item, files = scene.running("nginx", 101)
    scene.kernel.killed(item, files)
    scene.kernel.killed(item, files)
    assert kills(scene) == 2
    scene.restart()
    assert kills(scene) == 2
    files = restarted(scene, item, files)
    scene.kernel.killed(item, files)
    scene.restart()
    assert [kills(scene), kills(scene)] == [3, 3]
    scene.kernel.killed(item, files)
    assert kills(scene) == 4
    files = restarted(scene, item, files)
    assert kills(scene) == 4


def test_kills_while_no_collector_ran(scene: Scene) -> None:
    """FS-6: are in the log when it comes back."""
    item, files = scene.running("nginx", 101)
    assert kills(scene) == 0
    scene.kernel.logged(item)
    restarted(scene, item, files)
    scene.restart()
    assert kills(scene) == 1


def test_a_log_of_strangers(scene: Scene) -> None:
    """BM-6: other containers' kills are nobody's here, and are not kept for ever."""
    item, _ = scene.running("nginx", 101)
    scene.kernel.logged(item)
    assert kills(scene) == 1
    for number in range(600):
        scene.kernel.logged({"Id": f"{number:064x}"[::-1]})
    assert kills(scene) == 1
    assert len(scene.collector._log._kills) <= 256


@given(st.lists(st.sampled_from(["kill", "lethal", "restart", "look", "anew"]), max_size=12))
@settings(deadline=None, max_examples=60)
def test_kills_add_up(tmp_path_factory: pytest.TempPathFactory, story: list[str]) -> None:
    """FS-6: whatever happens in whatever order, with a log each kill counts exactly once."""
    scene = Scene(tmp_path_factory.mktemp("story"), 2)
    scene.engine.start()
    try:
        item, files = scene.running("nginx", 101)
        assert kills(scene) == 0
        expected = 0
        for event in [*story, "look"]:
            if event == "kill":
                scene.kernel.killed(item, files)
                expected += 1
            elif event == "lethal":
                scene.kernel.logged(item)
                files = restarted(scene, item, files)
                expected += 1
            elif event == "restart":
                files = restarted(scene, item, files)
            else:
                if event == "anew":
                    scene.restart()
                assert kills(scene) == expected
    finally:
        scene.engine.stop()


def test_one_question_for_the_list_and_one_for_each_container(scene: Scene) -> None:
    """BM-6: the collector is light."""
    scene.running("nginx", 101)
    scene.running("redis", 102)
    scene.step()
    assert len(scene.engine.asked) == 3


def test_what_is_kept_does_not_grow(scene: Scene) -> None:
    """BM-6: containers come and go for months."""
    for number in range(30):
        item, files = scene.running(f"job{number}", 1000 + number)
        scene.step()
        scene.kernel.end(item, files)
        del scene.engine.containers[item["Id"]]
    scene.step()
    assert not scene.collector._kills
    assert not scene.collector._cgroups._known


# --- What goes wrong.

NONSENSE = {
    "not HTTP": b"hello\r\n\r\n",
    "no end of the head": b"HTTP/1.1 200 OK\r\n",
    "an error": b'HTTP/1.1 500 Internal Server Error\r\n\r\n{"message":"no"}',
    "nothing": b"",
    "no JSON": b"HTTP/1.1 200 OK\r\n\r\n<html>",
    "cut short": b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n[]",
    "cut in the middle": b'HTTP/1.1 200 OK\r\n\r\n[{"Id":"ab',
    "an object": b"HTTP/1.1 200 OK\r\n\r\n{}",
    "a list of numbers": b"HTTP/1.1 200 OK\r\n\r\n[1, 2]",
    "null": b"HTTP/1.1 200 OK\r\n\r\nnull",
    "too deep": b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000,
    "no such thing": b"HTTP/1.1 404 Not Found\r\n\r\n{}",
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE)
def test_an_engine_that_talks_nonsense(scene: Scene, answer: bytes) -> None:
    """BM-6: no container, an error counted, and the rest written; then all is well again."""
    scene.running("nginx", 101)
    scene.step()
    scene.engine.raw["/containers/json"] = answer
    for errors in (1, 2):
        metrics = scene.step(well=False)
        assert not metrics.services
        assert metrics.value("container_metrics_errors_total") == errors
        assert metrics.names() == ITSELF | HOST
    scene.engine.raw.clear()
    metrics = scene.step()
    assert metrics.services == {"nginx"}
    assert metrics.value("container_metrics_errors_total") == 2


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_about_one_container(scene: Scene, answer: bytes) -> None:
    """BM-6: the others are still seen; one that has just gone is not even an error."""
    item, _ = scene.running("nginx", 101)
    scene.running("redis", 102)
    scene.engine.raw[f"/containers/{item['Id']}/json"] = answer
    gone = answer.startswith(b"HTTP/1.1 404")
    metrics = scene.step(well=gone)
    assert metrics.services == {"redis"}
    assert metrics.value("container_metrics_errors_total") == (0 if gone else 1)


def test_an_engine_that_is_down(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    """BM-6: said once, not every 15 seconds; what was counted is not forgotten."""
    item, files = scene.running("nginx", 101)
    scene.kernel.killed(item, files)
    scene.kernel.killed(item, files)
    scene.step()
    scene.engine.stop()
    for _ in range(3):
        assert scene.step(well=False).names() == ITSELF | HOST
    scene.engine.start()
    assert kills(scene) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "engine" in lines[0]
    assert "No such file" in lines[0]
    assert "well again" in lines[1]


def test_an_engine_that_hangs(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """BM-6: is waited for in bounds, for all questions together."""
    monkeypatch.setattr(cm, "ENGINE_SECONDS", 0.3)
    for number in range(10):
        scene.running(f"job{number}", 101 + number)
    scene.collector._engine._budget = 0.5
    scene.engine.delay = 0.2
    began = time.monotonic()
    scene.step(well=False)
    assert time.monotonic() - began < 2
    scene.engine.delay = 1
    assert scene.step(well=False).names() == ITSELF | HOST


def test_an_endless_answer(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """BM-6: memory stays bounded."""
    monkeypatch.setattr(cm, "ANSWER_LIMIT", 1 << 20)
    scene.engine.raw["/containers/json"] = b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (4 << 20)
    assert scene.step(well=False).names() == ITSELF | HOST


def test_a_container_that_goes_meanwhile(scene: Scene) -> None:
    """BM-6: listed, then its process and cgroups are gone: its state alone, and no error."""
    item, files = scene.running("nginx", 101)
    scene.running("redis", 102)
    scene.kernel.end(item, files)
    metrics = scene.step()
    assert not set(metrics.of("nginx")) & USAGE
    assert set(metrics.of("redis")) >= USAGE
    # And between two looks, so that the directories were known.
    item["State"]["Pid"] = 103
    files = scene.kernel.run(item)
    assert set(scene.step().of("nginx")) >= USAGE
    scene.kernel.end(item, files)
    assert not set(scene.step().of("nginx")) & USAGE


def test_files_that_cannot_be_understood(scene: Scene) -> None:
    """BM-6: that figure is absent and an error counted; the others are there."""
    _, files = scene.running("nginx", 101)
    controller = "pids" if scene.kernel.version == 1 else ""
    (files[controller] / "pids.current").write_text("many\n")
    metrics = scene.step(well=False)
    assert USAGE - set(metrics.of("nginx")) == {"container_processes"}
    assert metrics.value("container_metrics_errors_total") == 1


def test_hosts_network_that_cannot_be_read(scene: Scene) -> None:
    """BM-6: containers are still seen."""
    scene.running("nginx", 101)
    (scene.kernel.proc / "net" / "dev").unlink()
    metrics = scene.step(well=False)
    assert metrics.services == {"nginx"}
    assert not metrics.names() & HOST


def test_a_full_disk(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """BM-6: reported, the file of before stays whole, and the next time is tried again."""
    scene.running("nginx", 101)
    scene.step()
    whole = scene.output.read_text()

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert scene.collector.step() is False
    assert scene.output.read_text() == whole
    assert [path.name for path in scene.output.parent.iterdir()] == ["containers.prom"]
    assert "output: [Errno 28] No space left" in capfd.readouterr().err
    assert scene.step().value("container_metrics_errors_total") == 1


def test_a_really_full_disk(scene: Scene) -> None:
    """BM-6: one of 4 KiB, where root may mount."""
    small = scene.output.parent
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", small], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("may not mount")
    try:
        for number in range(20):
            scene.running(f"job{number}", 101 + number)
        assert scene.collector.step() is False
        assert list(small.iterdir()) == []
        subprocess.run(["mount", "-o", "remount,size=1m", small], check=True)
        assert len(scene.step().services) == 20
    finally:
        subprocess.run(["umount", small], check=True)


# --- The program.


class Program:
    """The script as it is run, on fixture trees."""

    def __init__(self, scene: Scene, script: Path = SCRIPT, *options: str) -> None:
        self.scene = scene
        self.log = scene.directory / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [PYTHON, "-ISB", str(script), *scene.arguments, "--interval=1", *options],
                stdout=log,
                stderr=log,
                # Such as a service manager may give; the exporter must read the file all the same.
                umask=0o077,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def written(self, *, after: float = 0) -> Metrics | None:
        with contextlib.suppress(FileNotFoundError):
            metrics = self.scene.read()
            if metrics.value("container_metrics_collected_timestamp_seconds") > after:
                return metrics
        return None

    def fresh(self) -> Metrics:
        """Of a collection that begins from now on."""
        now = time.time()
        return wait_for("a new file", lambda: self.written(after=now), 10, 0.02)


@pytest.fixture
def paper(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path, 2)
    made.engine.start()
    yield made
    made.engine.stop()


def test_once(paper: Scene) -> None:
    """CS-6: exit status 0 when all went well, 1 when not."""
    with Program(paper, SCRIPT, "--once") as program:
        assert program.process.wait(10) == 0
    assert (paper.output.stat().st_mode & 0o777) == 0o644
    paper.engine.stop()
    with Program(paper, SCRIPT, "--once") as program:
        assert program.process.wait(10) == 1
        assert "engine: No such file" in program.log.read_text()


def test_atomic_under_readers(paper: Scene) -> None:
    """CS-10: whoever reads at whatever moment finds a whole file, and one name alone."""
    for number in range(8):
        paper.running(f"job{number}", 101 + number)
    paper.step()
    ended = threading.Event()
    seen: list[str] = []

    def reader() -> None:
        while not ended.is_set():
            seen.append(paper.output.read_text())
            time.sleep(0.0005)

    threads = [threading.Thread(target=reader) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        paper.collector.step()
    ended.set()
    for thread in threads:
        thread.join()
    assert len(set(seen)) > 3
    for text in set(seen):
        assert len(Metrics(text).services) == 8
    assert [path.name for path in paper.output.parent.iterdir()] == ["containers.prom"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("hanging", [False, True], ids=["asleep", "waiting for the engine"])
def test_ends_at_once(paper: Scene, number: signal.Signals, hanging: bool) -> None:
    """CS-15: exit status 0 within a moment, nothing left beside the file."""
    paper.engine.delay = 30 if hanging else 0
    with Program(paper, SCRIPT, "--interval=3600") as program:
        if hanging:
            wait_for("a question", lambda: paper.engine.asked, 10, 0.02)
        else:
            wait_for("a file", program.written, 10, 0.02)
        time.sleep(0.1)
        began = time.monotonic()
        program.process.send_signal(number)
        assert program.process.wait(5) == 0
        assert time.monotonic() - began < 0.5
    assert not [path for path in paper.output.parent.iterdir() if path != paper.output]


def test_keeps_to_the_interval(paper: Scene) -> None:
    """CS-10: collections fall on multiples of the interval and do not drift."""
    with Program(paper) as program:
        times: list[float] = []
        for _ in range(4):
            metrics = wait_for(
                "the next one", lambda: program.written(after=times[-1] if times else 0), 10, 0.02
            )
            times.append(metrics.value("container_metrics_collected_timestamp_seconds"))
    # The first comes at once.
    for before, after in itertools.pairwise(times[1:]):
        assert after - before == pytest.approx(1, abs=0.4)
    for moment in times[1:]:
        assert moment % 1 < 0.4


@pytest.mark.parametrize(
    ("now", "wait"), [(100.0, 15 - 10), (104.0, 1), (104.999, 15.001), (105.0, 15), (119.0, 1)]
)
def test_sleeps_until_the_next_multiple(now: float, wait: float) -> None:
    """CS-10: and not twice when woken a hair too early."""
    assert cm.until_next(now, 15) == pytest.approx(wait)


def test_becomes_its_new_version(paper: Scene) -> None:
    """BM-10: a release swaps the link `current`; the process stays, the program is the new one."""
    for name in ("one", "two", "broken"):
        (paper.directory / name).mkdir()
        shutil.copy(SCRIPT, paper.directory / name / "collector.py")
    text = SCRIPT.read_text()
    explanation = "Processes and threads."
    assert explanation in text
    (paper.directory / "two" / "collector.py").write_text(text.replace(explanation, "Second."))
    (paper.directory / "broken" / "collector.py").write_text("def broken(:\n")
    current = paper.directory / "current"
    current.symlink_to("one")

    def swap(name: str) -> None:
        link = paper.directory / "next"
        link.symlink_to(name)
        link.rename(current)

    paper.running("nginx", 101)
    with Program(paper, current / "collector.py") as program:
        wait_for("a file", program.written, 10, 0.05)
        swap("two")
        wait_for("the new version", lambda: "Second." in paper.output.read_text(), 10, 0.05)
        swap("broken")
        wait_for("a complaint", lambda: "old one stays" in program.log.read_text(), 10, 0.05)
        metrics = program.fresh()
        assert metrics.value("container_metrics_errors_total") == 1
        assert metrics.services == {"nginx"}
        program.fresh()
        assert program.log.read_text().count("old one stays") == 1
        swap("one")
        wait_for("the first again", lambda: explanation in paper.output.read_text(), 10, 0.05)
        # The room is taken away, and with it what it says of containers.
        current.unlink()
        assert program.process.wait(10) == 0
    assert not paper.output.exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "--project"),
        (["--project=x"], "--output"),
        (["--project=A B", "--output=/tmp/x.prom"], "no name of a Compose project"),
        (["--project=x", "--output=/tmp/x.txt"], "only names in .prom"),
        (["--project=x", "--output=/no/such/x.prom"], "no such directory: /no/such"),
        (["--project=x", "--output=/tmp/x.prom", "--interval=0"], "1 to 3600 seconds, not 0"),
        (["--project=x", "--output=/tmp/x.prom", "--interval=nan"], "1 to 3600 seconds, not nan"),
        (["--project=x", "--output=/tmp/x.prom", "--interval=often"], "invalid float"),
        (["--project=x", "--output=/tmp/x.prom", "--sysfs=/no"], "--sysfs: no such directory: /no"),
        (["--project=x", "--output=/tmp/x.prom", "--procfs=/no"], "--procfs: no such directory"),
        (["--project=x", "--output=/tmp/x.prom", f"--socket=/{'s' * 107}"], "107 bytes"),
        (["--project=x", "--output=/tmp/x.prom", "--frobnicate"], "unrecognized"),
    ],
)
def test_arguments_are_refused(options: list[str], complaint: str) -> None:
    """CS-12: a message that names the option, and exit status 2."""
    done = subprocess.run(
        [PYTHON, "-ISB", str(SCRIPT), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_needs_no_more_than_python_3_9() -> None:
    """CS-1: a host brings what its distribution has; and its own library alone."""
    assert os.access(SCRIPT, os.X_OK)
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 9))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported <= set(sys.stdlib_module_names)


def test_the_program_is_no_template() -> None:
    """CS-1: it stands among templates and must pass through as it is."""
    text = SCRIPT.read_text()
    assert "{{" not in re.sub(r"\{\{\"|\"\{\"|\"\}\"", "", text)
    assert "{%" not in text
    assert "{#" not in text


def test_memory_is_small(paper: Scene) -> None:
    """BM-6: the aim is 15 MB; Python itself takes 8 of them and differs by version."""
    for number in range(12):
        paper.running(f"job{number}", 101 + number)
    with Program(paper) as program:
        program.fresh()
        program.fresh()
        status = Path(f"/proc/{program.process.pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    assert int(match[1]) < 18_000


# --- The unit.


def test_unit_is_valid_and_hardened(tmp_path: Path) -> None:
    """FS-6: systemd understands every line and thinks well of it."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = UNIT.read_text()
    values = {"stack_dir": "/usr/share", "stack_project": "compose-stack"}
    assert set(re.findall(r"\{\{ (\w+) \}\}", text)) == set(values)
    for name, value in values.items():
        text = text.replace("{{ %s }}" % name, value)  # noqa: UP031 - braces
    unit = tmp_path / "container-metrics.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    assert unit.name not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", unit],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_works_without_other_capabilities(paper: Scene) -> None:
    """FS-6: what the unit takes away is not missed, on the real /proc of this machine."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    paper.running("nginx", 101)
    command = [
        "setpriv", "--bounding-set=-all,+syslog", "--inh-caps=-all", "--no-new-privs",
        PYTHON, "-ISB", str(SCRIPT), *paper.arguments, "--once",
    ]  # fmt: skip
    command[command.index(f"--kmsg={paper.kernel.log}")] = "--kmsg=/dev/kmsg"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(paper.read().of("nginx")) >= USAGE


# --- A real engine.

PROJECT = "container-metrics-test"
IMAGE = f"{PROJECT}:1"
TOOLS = ("sh", "sleep", "tail", "touch", "head", "cat")
SERVICES: dict[str, dict[str, Any]] = {
    "steady": {
        "command": ["sh", "-c", "head -c 3000000 /dev/zero > /file; exec sleep 600"],
        "healthcheck": {"test": ["CMD", "sh", "-c", ":"], "interval": "1s"},
    },
    # Its child is killed, and it runs on.
    "parent": {"command": ["sh", "-c", "tail /dev/zero; exec sleep 600"]},
    # It is killed itself and stays down.
    "killed": {"command": ["sh", "-c", "exec tail /dev/zero"], "restart": "no"},
    # Started again once, by itself.
    "again": {
        "command": ["sh", "-c", "[ -e /seen ] && exec sleep 600; : > /seen; exit 3"],
        "restart": "always",
    },
    # Killed when told to, and started again within a moment.
    "victim": {
        "command": [
            "sh", "-c",
            (
                "[ -e /seen ] && exec sleep 600; "
                "until [ -e /go ]; do sleep 0.1; done; : > /seen; exec tail /dev/zero"
            ),
        ],
        "restart": "always",
    },
    "sick": {
        "command": ["sleep", "600"],
        "healthcheck": {"test": ["CMD", "sh", "-c", "exit 1"], "interval": "1s", "retries": 1},
    },
    "done": {"command": ["sh", "-c", "exit 0"], "restart": "no"},
    "failed": {"command": ["sh", "-c", "exit 7"], "restart": "no"},
}  # fmt: skip


def remove() -> None:
    """What the test made, by its own names."""
    here = Engine()
    mine = f"label=com.docker.compose.project={PROJECT}"
    listed = here.run("docker", "ps", "--all", "--quiet", "--filter", mine).split()
    if listed:
        here.run("docker", "rm", "--force", "--volumes", *listed)
    for what in ("network", "image"):
        name = IMAGE if what == "image" else f"{PROJECT}_default"
        subprocess.run(["docker", what, "rm", name], capture_output=True, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    here = Engine()
    if not here.succeeds("docker", "compose", "version") or not here.succeeds("docker", "info"):
        pytest.skip("needs a Docker Engine and Compose")
    remove()
    # A few programs of this machine are image enough.
    found = [f"/bin/{tool}" for tool in TOOLS]
    script = (
        "tar --create --dereference --absolute-names --file=- "
        "$(printf '%s\\n' \"$@\" $(ldd \"$@\" | grep -o '/[^ :]*' | sort -u) | sort -u) | "
        f"docker import - {IMAGE}"
    )
    here.run("sh", "-c", script, "sh", *found)
    limits = {"limits": {"cpus": "0.2", "memory": "24M", "pids": 16}}
    common = {
        "image": IMAGE,
        "init": True,
        "stop_grace_period": "1s",
        "deploy": {"resources": limits},
        "memswap_limit": "24M",
    }
    services = {name: {**common, **service} for name, service in SERVICES.items()}
    file = tmp_path / "compose.yml"
    file.write_text(yaml.safe_dump({"name": PROJECT, "services": services}))
    try:
        here.run("docker", "compose", "--file", str(file), "up", "--detach", "--quiet-pull")
        yield file
    finally:
        remove()


@pytest.mark.docker
@pytest.mark.slow
def test_real_containers(project: Path, tmp_path: Path) -> None:
    """BM-6, FS-6, CS-6: figures of containers that live, die and come back on this machine."""
    here = Engine()
    output = tmp_path / "containers.prom"
    arguments = [f"--project={PROJECT}", f"--output={output}"]
    collector = cm.Collector(cm.options_of(arguments))

    def step() -> Metrics:
        assert collector.step()
        return Metrics(output.read_text())

    def settled() -> Metrics | None:
        metrics = step()
        as_expected = (
            metrics.of("steady").get("container_health") == 1
            and metrics.of("sick").get("container_health") == 0
            and metrics.of("again").get("container_restarts_total") == 1
            and metrics.of("again").get("container_running") == 1
            and metrics.of("parent").get("container_oom_kills_total") == 1
            and metrics.of("killed").get("container_oom_kills_total") == 1
        )
        return metrics if as_expected else None

    wait_for("every container to have come to its end", settled, 60, 1)
    # A one-off while it is measured.
    here.run(
        "docker", "compose", "--file", str(project), "run", "--detach", "--no-deps", "steady",
        "sleep", "600",
    )  # fmt: skip
    subprocess.run([PYTHON, "-ISB", str(SCRIPT), *arguments, "--once"], check=True, timeout=30)
    metrics = Metrics(output.read_text())
    assert metrics.services == set(SERVICES)
    for service in ("steady", "parent", "again", "sick", "victim"):
        found = metrics.of(service)
        assert set(found) >= USAGE | LIMITS, service
        assert found["container_running"] == 1
        assert found["container_spec_memory_limit_bytes"] == 24 << 20
        assert found["container_spec_cpu_quota_cores"] == 0.2
        assert found["container_spec_processes_limit"] == 16
        assert 0 < found["container_processes"] <= 16
        assert 0 < found["container_cpu_usage_seconds_total"] < 60
        assert abs(found["container_start_time_seconds"] - time.time()) < 300
        assert "container_exit_code" not in found
    # Three megabytes of file are charged, and count as what can be reclaimed.
    steady = metrics.of("steady")
    assert 3_000_000 < steady["container_memory_usage_bytes"] < 24 << 20
    working_set = steady["container_memory_working_set_bytes"]
    assert 0 < working_set < steady["container_memory_usage_bytes"] - 2_000_000
    assert steady["container_health"] == 1
    assert metrics.of("sick")["container_health"] == 0
    assert "container_health" not in metrics.of("parent")
    assert metrics.of("again")["container_restarts_total"] == 1
    for service, code, killed in (("killed", 137, 1), ("done", 0, 0), ("failed", 7, 0)):
        found = metrics.of(service)
        assert set(found) == STATE - {"container_health"}, service
        assert found["container_running"] == 0
        assert found["container_exit_code"] == code
        assert found["container_oom_kills_total"] == killed, service
    assert metrics.of("parent")["container_oom_kills_total"] == 1
    assert metrics.of("again")["container_oom_kills_total"] == 0

    # What the engine says of the same.
    listed = here.run("docker", "top", f"{PROJECT}-again-1").splitlines()
    assert len(listed) - 1 == metrics.of("again")["container_processes"]

    # One killed and started again between two looks.
    assert step().of("victim")["container_oom_kills_total"] == 0
    here.run("docker", "exec", f"{PROJECT}-victim-1", "touch", "/go")
    wait_for(
        "the engine to start it again",
        lambda: here.run(
            "docker", "inspect", "--format", "{{.RestartCount}} {{.State.Status}}",
            f"{PROJECT}-victim-1",
        ).strip() == "1 running",
        30,
    )  # fmt: skip
    found = step().of("victim")
    assert found["container_oom_kills_total"] == 1
    assert found["container_restarts_total"] == 1
    here.run("docker", "stop", f"{PROJECT}-steady-1")
    found = step().of("steady")
    assert found["container_running"] == 0
    assert "container_exit_code" in found
    assert not set(found) & USAGE
