"""What the end-to-end tests, the molecule scenario and the benchmarks share."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import requests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
MAX_EXECUTIONS = 25

T = TypeVar("T")


def wait_for(
    what: str, probe: Callable[[], T | None], seconds: float = 30, every: float = 0.25
) -> T:
    """The first true value that probe returns before the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(every)


@dataclass
class Run:
    """One finished ansible-playbook."""

    returncode: int
    output: str
    seconds: float
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def changed(self) -> int:
        return int(self.record["changed"])

    @property
    def executions(self) -> int:
        return len(self.record["executions"])

    def succeeded(self) -> Run:
        assert self.returncode == 0, self.output[-6000:]
        return self

    def failed(self) -> Run:
        assert self.returncode != 0, self.output[-6000:]
        return self


def ansible_environment(record: Path) -> dict[str, str]:
    """The environment of a recorded run."""
    return {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests" / "callback_plugins"),
        "ANSIBLE_CALLBACKS_ENABLED": "run_record",
        "ANSIBLE_RUN_RECORD_FILE": str(record),
        "ANSIBLE_NOCOLOR": "1",
        "PYTHONUNBUFFERED": "1",
    }


def playbook(
    inventory: Path | str,
    *options: str,
    name: str = "site.yml",
    variables: dict[str, Any] | None = None,
    interrupt_at: str | None = None,
    kill_after: float | None = None,
    before_kill: Callable[[], None] | None = None,
    environment: dict[str, str] | None = None,
    seconds: float = 300,
) -> Run:
    """Run one of the repository's playbooks.

    It is stopped by Ctrl-C when `interrupt_at` appears; with `kill_after`, so many seconds later
    `before_kill` is called and it is killed with all that it has started here.
    """
    command = [str(BIN / "ansible-playbook"), "-i", str(inventory), f"playbooks/{name}", *options]
    if variables:
        command += ["-e", json.dumps(variables)]
    with tempfile.TemporaryDirectory(prefix="run-record-") as directory:
        record = Path(directory, "record.jsonl")
        variant = {**ansible_environment(record), **(environment or {})}
        if interrupt_at is not None:
            # Otherwise a task is named only when it has ended.
            variant["ANSIBLE_DISPLAY_SKIPPED_HOSTS"] = "1"
        began = time.monotonic()
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=variant,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            watchdog = _Watchdog(process, seconds)
            impatience = _Impatience(process, command, kill_after, before_kill)
            lines: list[str] = []
            with watchdog, impatience:
                assert process.stdout is not None
                for line in process.stdout:
                    lines.append(line)
                    if interrupt_at is not None and interrupt_at in line:
                        interrupt_at = None
                        impatience.start()
                returncode = process.wait()
        output = "".join(lines)
        assert not watchdog.fired, f"{command} took more than {seconds} s\n{output[-6000:]}"
        assert interrupt_at is None, f"{interrupt_at!r} never appeared\n{output[-6000:]}"
        known = json.loads(record.read_text().splitlines()[-1]) if record.exists() else {}
        return Run(returncode, output, time.monotonic() - began, known)


class _Impatience:
    """Presses Ctrl-C, and again as long as nothing comes of it.

    Ansible now and then goes on as if nothing had been pressed, or waits for ever, when the first
    arrives while it starts a worker. Who sees no end then kills it, workers included, which have
    sessions of their own.
    """

    def __init__(
        self,
        process: subprocess.Popen[str],
        command: list[str],
        kill_after: float | None,
        before_kill: Callable[[], None] | None,
    ) -> None:
        self._process = process
        self._kill_after = kill_after
        self._before_kill = before_kill
        self._command = "\0".join(command).encode()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._press, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _press(self) -> None:
        if self._kill_after is not None:
            time.sleep(self._kill_after)
            if self._before_kill is not None:
                self._before_kill()
            for process in (self._process.pid, *_descendants(self._process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            return
        for _ in range(8):
            # The terminal sends it to the whole foreground group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGINT)
            if self._ended.wait(7):
                return
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if self._command in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._ended.set()


def _descendants(process: int) -> list[int]:
    """All that a process has started and what those have, whatever sessions they are in."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(path.parent.name))
    found = [process]
    for each in found:
        found += parents.get(each, [])
    return found[1:]


class _Watchdog:
    """Kills a process group that outlives its time."""

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        self.fired = False
        self._process = process
        self._timer = threading.Timer(seconds, self._fire)

    def _fire(self) -> None:
        self.fired = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if kind is not None:
            self._fire()


@dataclass(frozen=True)
class Engine:
    """A Docker Engine, here or inside a container host."""

    prefix: tuple[str, ...] = ()

    def run(self, *command: str, check: bool = True, seconds: float = 120) -> str:
        """Output of a command on the engine's machine."""
        done = subprocess.run(
            [*self.prefix, *command],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def succeeds(self, *command: str, seconds: float = 120) -> bool:
        done = subprocess.run(
            [*self.prefix, *command], capture_output=True, timeout=seconds, check=False
        )
        return done.returncode == 0

    def json_lines(self, *command: str) -> list[Any]:
        return [json.loads(line) for line in self.run(*command).splitlines() if line]


class Stack:
    """A deployed stack: its containers by service, and its public address."""

    def __init__(self, engine: Engine, project: str, directory: str, address: Site) -> None:
        self.engine = engine
        self.project = project
        self.directory = directory
        self.site = address

    def containers(self, *, running: bool = False) -> dict[str, dict[str, Any]]:
        """What `docker inspect` says of each container, by the name of the container."""
        options = [] if running else ["--all"]
        listed = self.engine.run(
            "docker",
            "ps",
            *options,
            "--quiet",
            f"--filter=label=com.docker.compose.project={self.project}",
        ).split()
        if not listed:
            return {}
        found = json.loads(self.engine.run("docker", "inspect", *listed))
        return {item["Name"].removeprefix(f"/{self.project}-"): item for item in found}

    def services(self) -> dict[str, list[dict[str, Any]]]:
        """The running containers by service."""
        by_service: dict[str, list[dict[str, Any]]] = {}
        for item in self.containers(running=True).values():
            labels = item["Config"]["Labels"]
            by_service.setdefault(labels["com.docker.compose.service"], []).append(item)
        return by_service

    def one(self, service: str) -> dict[str, Any]:
        """The one running container of a service."""
        (item,) = self.services()[service]
        return item

    def lives(self, *, running: bool = False) -> dict[str, tuple[str, str]]:
        """Identity and start of each container: any touch changes one of the two."""
        return {
            name: (item["Id"], item["State"]["StartedAt"])
            for name, item in self.containers(running=running).items()
        }

    def healthy(self) -> bool:
        """Whether every running container with a health check passes it, and the site answers."""
        states = [
            item["State"]["Health"]["Status"]
            for item in self.containers(running=True).values()
            if "Health" in item["State"]
        ]
        return bool(states) and set(states) == {"healthy"} and self.site.answers()

    def wait_healthy(self, seconds: float = 60) -> None:
        wait_for("every container healthy and 200 from /health", self.healthy, seconds)

    def execute(self, service: str, *command: str, check: bool = True) -> str:
        """Output of a command inside the one container of a service."""
        return self.engine.run("docker", "exec", self.one(service)["Id"], *command, check=check)

    def login(self, secret: str, role: str = "app") -> tuple[str, str]:
        """As whom what runs signs in with a secret, and the secret."""
        password = self.engine.run("cat", f"{self.directory}/secrets/{secret}")
        same = 'cd "$0/secrets"; for v in .versions/$1/*; do cmp -s $1 $v && echo ${v##*/}; done'
        version = self.engine.run("sh", "-c", same, self.directory, secret, check=False)
        return f"{role}_{version.strip()}", password

    def compose(self, *command: str, seconds: float = 180) -> str:
        """`docker compose` typed by hand in the stack's directory."""
        return self.engine.run(
            "sh",
            "-c",
            f'cd {self.directory} && exec docker compose "$@"',
            "sh",
            *command,
            seconds=seconds,
        )

    def api_slot(self) -> str:
        """The service that serves; the version before may stand by in the other slot."""
        active = self.engine.run("readlink", f"{self.directory}/run/sockets/active")
        return f"api-{active.strip()}"


@dataclass(frozen=True)
class Site:
    """The stack's public address."""

    address: str
    https_port: int
    http_port: int
    name: str
    ca: Path

    def session(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        session.verify = str(self.ca)
        session.mount("https://", _ByName(self.name))
        return session

    def url(self, path: str) -> str:
        return f"https://{self.address}:{self.https_port}{path}"

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """One request over a connection of its own."""
        headers = {"Host": self.name, **options.pop("headers", {})}
        options.setdefault("timeout", 10)
        with self.session() as session:
            return session.request(
                method, self.url(path), headers=headers, allow_redirects=False, **options
            )

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.request("GET", path, **options)

    def patiently(self, method: str, path: str, **options: Any) -> requests.Response:
        """A request repeated while the rate limit refuses it."""
        deadline = time.monotonic() + 15
        while True:
            answer = self.request(method, path, **options)
            if answer.status_code != 429 or time.monotonic() > deadline:
                return answer
            time.sleep(0.2)

    def plain(self, path: str, **headers: str) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(
                f"http://{self.address}:{self.http_port}{path}",
                headers={"Host": self.name, **headers},
                allow_redirects=False,
                timeout=10,
            )

    def answers(self) -> bool:
        try:
            return self.get("/health", timeout=5).status_code == 200
        except (requests.RequestException, OSError):
            return False

    def raw(self, request: bytes) -> bytes:
        """What comes back for bytes that no HTTP client would send."""
        context = ssl.create_default_context(cafile=str(self.ca))
        with (
            socket.create_connection((self.address, self.https_port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=self.name) as wrapped,
        ):
            wrapped.sendall(request)
            return b"".join(iter(lambda: wrapped.recv(65536), b""))

    def handshake(self, version: ssl.TLSVersion, ciphers: str = "ALL") -> str:
        """The protocol agreed on when the client offers just one; raises when refused.

        The ciphers, by OpenSSL's names, are those up to TLS 1.2: later ones are always offered.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
        context.minimum_version = version
        context.maximum_version = version
        with (
            socket.create_connection((self.address, self.https_port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=self.name) as wrapped,
        ):
            return str(wrapped.version())

    def fingerprint(self) -> str:
        """SHA-256 of the certificate that is served, which the authority vouches for."""
        context = ssl.create_default_context(cafile=str(self.ca))
        with (
            socket.create_connection((self.address, self.https_port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=self.name) as wrapped,
        ):
            certificate = wrapped.getpeercert(binary_form=True)
        assert certificate
        return hashlib.sha256(certificate).digest().hex(":").upper()


class _ByName(requests.adapters.HTTPAdapter):
    """Connects to an address, and asks for and checks the certificate of a name."""

    def __init__(self, name: str) -> None:
        self._name = name
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(
            *args, server_hostname=self._name, assert_hostname=self._name, **kwargs
        )


@contextlib.contextmanager
def listening(port: int, address: str = "127.0.0.1") -> Iterator[None]:
    """Hold a port."""
    with socket.create_server((address, port)):
        yield


def port_open(address: str, port: int, seconds: float = 1) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=seconds):
        return True
    return False


def copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
