"""FS-7, BM-8: an encrypted copy elsewhere, on real servers, and whatever may happen to it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.backups.conftest import (
    BENCH,
    DRILL,
    ENGINE,
    INVENTORY,
    KEEPER,
    SERVICES,
    SETTINGS,
    said,
)
from tests.harness import ROOT, Run, playbook, wait_for
from tests.roles.tls.authority import issue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.backups.conftest import World

NAME = f"{BENCH.project}-copies"
IMAGE = f"{NAME}:test"
PLACE = BENCH.backups.parent / "offsite"
OFFSITE: dict[str, Any] = {
    # RabbitMQ has queues where something declares them.
    "stack_services": [*SERVICES, "birthdays", "offsite"],
    "offsite_repository": str(PLACE),
}
REDIS = "var/lib/offsite/redis"
PLANTED = "planted-secret-of-the-source"
KINDS = ["local", "sftp", "rest", "s3"]


@pytest.fixture(scope="module")
def copied(world: World) -> Iterator[World]:
    """The stack, with a copy in a directory of its own."""
    shutil.rmtree(PLACE, ignore_errors=True)
    run = world.run("site.yml", **OFFSITE).succeeded()
    assert "nobody has seen the key" in said(run), "until it was shown, every run says so"
    wait_for("a copy", lambda: state(world)["succeeded"], 120, 1)
    yield world
    # `make clean` leaves it alone.
    shutil.rmtree(PLACE)


def state(world: World) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(world.stack.execute("offsite", *KEEPER, "list"))
    return found


def back(image: str, repository: Path, key: Path, target: Path) -> None:
    """What is in the newest copy, by restic alone."""
    ENGINE.run(
        "docker", "run", "--rm", "--network=none", f"--volume={repository}:/repository",
        f"--volume={key}:/key:ro", f"--volume={target}:/back", image, "restic",
        "--repo=/repository", "--password-file=/key", "--no-cache", "restore", "latest",
        "--target=/back",
    )  # fmt: skip


def test_the_copy_comes_by_itself(copied: World) -> None:
    """FS-7: `make backups` says where and when, and Prometheus can tell."""
    text = said(copied.run("backups.yml", **OFFSITE).succeeded())
    assert f"Copied to {PLACE} at 20" in text
    fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9121/metrics').read().decode())"
    metrics = copied.stack.execute("offsite", "python3", "-c", fetch)
    assert "offsite_failing 0\n" in metrics
    assert 'backup_last_success_timestamp_seconds{copy="offsite"} 1' in metrics
    assert "offsite_snapshots 1\n" in metrics


def test_it_holds_what_another_host_needs(copied: World, tmp_path: Path) -> None:
    """FS-7: the archive with all that Barman has, owners included, the secrets and certificates."""
    copied.stack.execute("offsite", *KEEPER, "copy")
    image = copied.stack.one("offsite")["Config"]["Image"]
    secrets = Path(BENCH.directory, "secrets")
    back(image, PLACE, secrets / "offsite_password", tmp_path)
    source = tmp_path / "source"
    assert (source / "secrets/operator_password").read_text() == (
        secrets / "operator_password"
    ).read_text()
    assert (source / "tls/live").exists()
    assert list((source / "state/releases").iterdir())
    assert (tmp_path / REDIS / "appendonlydir/appendonly.aof.manifest").exists()
    for item in copied.backups():
        kept = source / "backup/main/base" / item["id"] / "data"
        assert (kept / "backup_manifest").stat().st_uid == 70
    ENGINE.run("rm", "-rf", str(source))


def test_its_key_is_seen_by_the_operator_alone(copied: World) -> None:
    """FS-8: shown on request, and after that no run asks for it; in no place that others read."""
    key = Path(BENCH.directory, "secrets", "offsite_password").read_text().strip()
    assert key in copied.run("offsite_key.yml", **OFFSITE).succeeded().output
    run = copied.run("site.yml", **OFFSITE).succeeded()
    assert "nobody has seen the key" not in said(run)
    assert run.changed == 0
    assert run.executions <= 25
    container = copied.stack.one("offsite")
    places = {
        "inspect": json.dumps(container),
        "environment": copied.stack.execute("offsite", "cat", "/proc/1/environ"),
        "log": ENGINE.run("docker", "logs", container["Id"]),
        "run": run.output,
    }
    assert [name for name, text in places.items() if key in text] == []
    capabilities = [name.removeprefix("CAP_") for name in container["HostConfig"]["CapAdd"]]
    assert capabilities == ["DAC_READ_SEARCH"]
    # The secrets of the stack lie in the copy, and nobody finds them there.
    secrets = [path.read_text().strip() for path in Path(BENCH.directory, "secrets").glob("[a-z]*")]
    assert key in secrets
    assert len(secrets) > 8
    for secret in secrets:
        assert not ENGINE.succeeds("grep", "-rqF", secret, str(PLACE))


def test_a_drill_of_it(copied: World) -> None:
    """FS-7: what lies elsewhere is proved where there is such, and `make drill` says so."""
    text = said(copied.run("drill.yml", **OFFSITE).succeeded())
    assert "from the off-site copy of 20" in text
    assert "The application works on it." in text
    assert "from the off-site copy" in said(copied.run("backups.yml", **OFFSITE).succeeded())
    metrics = copied.metrics()
    assert metrics["backup_drill_from_copy"] == 1
    assert metrics["backup_drill_failing"] == 0
    assert metrics["backup_drill_rows"] > 0


def test_a_drill_learns_of_the_copy_what_is_its_own(copied: World) -> None:
    """FS-8, FS-6: the keeper of the backups has no key, and is given nothing but backups."""
    places = copied.stack.execute("backup", "sh", "-c", "ls /run/secrets; ls /source", check=False)
    assert "offsite" not in places
    assert "No such file or directory" in places
    for path in ("secrets/operator_password", "main/../../secrets/operator_password", "/main"):
        lines = copied.report(ASK, json.dumps({"snapshot": "latest", "path": path}))
        assert lines == [json.dumps({"refused": f"'{path}' is not given to anybody."})]


ASK = """
import sys
from multiprocessing.connection import Client
with Client('/run/offsite/socket', 'AF_UNIX') as peer:
    peer.send_bytes(sys.argv[1].encode())
    while peer.recv_bytes():
        print('something came')
    print(peer.recv_bytes().decode())
"""
RED = {
    "a flipped bit": "From the off-site copy: A part of the repository is damaged",
    "an empty file": "rows of app (are missing, which an index has|cannot be counted)",
    "missing WAL": "The copy lacks [0-9A-F]{24}",
    "the wrong key": "From the off-site copy: The key does not open the repository",
    "a full disk": "from the off-site copy.* [0-9]+ MiB are needed and [0-9]+ MiB are free",
    "a truncated dump": r"In the copy dump [0-9TZ]+ is damaged: app\.dump",
}


@contextlib.contextmanager
def damaged(world: World, how: str) -> Iterator[None]:
    """While the newest copy, or the drill's disk, is not as it should be."""
    if how == "a full disk":
        with world.damaged(how):
            yield
        return
    if how in ("a flipped bit", "the wrong key"):
        path, at = (mounted_key(world), 0) if how == "the wrong key" else stored(world)
        content = path.read_bytes()
        try:
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            yield
        finally:
            path.write_bytes(content)
        return
    # Here it is whole again before the drill, and stays so in the copies after it.
    with world.damaged(how):
        world.stack.execute("offsite", *KEEPER, "copy")
    yield
    world.stack.execute("offsite", *KEEPER, "copy")


def mounted_key(world: World) -> Path:
    (mount,) = [
        item for item in world.stack.one("offsite")["Mounts"]
        if item["Destination"] == "/run/secrets/offsite_password"
    ]  # fmt: skip
    return Path(mount["Source"])


def stored(world: World) -> tuple[Path, int]:
    """A byte of the repository, in the control file of the newest full backup."""
    restic = (
        "restic", "--repo=/repository", "--password-file=/run/secrets/offsite_password",
        "--no-cache", "--quiet",
    )  # fmt: skip

    def read(*words: str) -> Any:
        return json.loads(world.stack.execute("offsite", *restic, *words))

    full = [item["id"] for item in world.backups() if item["full"]][-1]
    snapshot = read("snapshots", "--latest=1", "--json")[-1]["id"]
    place = f"{snapshot}:/source/backup/main/base/{full}/data/global"
    files = read("cat", "tree", place)["nodes"]
    (blob,) = [item["content"][0] for item in files if item["name"] == "pg_control"]
    for index in world.stack.execute("offsite", *restic, "list", "index").split():
        for pack in read("cat", "index", index)["packs"]:
            for item in pack["blobs"]:
                if item["id"] == blob:
                    path = PLACE / "data" / pack["id"][:2] / pack["id"]
                    return path, item["offset"] + item["length"] // 2
    raise AssertionError(blob)


@pytest.mark.parametrize("damage", RED)
def test_what_turns_a_drill_of_it_red(copied: World, damage: str) -> None:
    """FS-7: each kind of damage by its own cause, though all that is here is as it should be."""
    with damaged(copied, damage):
        answer = copied.keeper("drill")
    assert re.search(RED[damage], answer.get("refused", "")), answer
    assert copied.metrics()["backup_drill_failing"] == 1


def test_a_drill_of_it_that_is_green_again(copied: World) -> None:
    """FS-7: and nothing is left on the drill's disk."""
    assert "refused" not in copied.keeper("drill")
    assert copied.metrics()["backup_drill_failing"] == 0
    left = {path.name for path in DRILL.iterdir()}
    assert left == {"result"}


# -- without the stack: the keeper alone, and real servers ----------------------------------------


@dataclass
class Copies:
    """The keeper in a container, what it copies, and the server that it copies to."""

    home: Path
    kind: str
    image: str
    password: str = "a-password"
    repository: str = ""
    options: list[str] = field(default_factory=list)

    @property
    def place(self) -> Path:
        return self.home / "server" / "copies"

    @property
    def server(self) -> str:
        return f"{NAME}-{self.kind}"

    def prepare(self) -> None:
        for name in (
            "source/backup/main/meta",
            "queue",
            "state",
            "secrets",
            "tree/current",
            "server",
        ):
            (self.home / name).mkdir(parents=True)
        closed = self.home / "source" / "backup" / "main" / "closed"
        closed.write_text(PLANTED)
        closed.chmod(0o600)
        shutil.chown(closed, 70, 70)
        (self.home / "secrets" / "offsite_password").write_text("the-key-of-the-copy")
        current = self.home / "tree" / "current"
        (current / "bin").mkdir()
        (current / "config").mkdir()
        bins = ROOT / "roles" / "offsite" / "templates" / "bin"
        shutil.copy(bins / "keeper.py", current / "bin")
        shutil.copy(ROOT / "files" / "templates" / "keeping.py", current / "bin")
        redis = self.home / "queue" / "appendonlydir"
        redis.mkdir()
        (redis / "appendonly.aof.manifest").write_text("")
        (current / "config" / "known_hosts").write_text("")
        (current / "config" / "ca.pem").write_text("")
        self.place.mkdir()
        getattr(self, f"serve_{self.kind}")()

    def serve_local(self) -> None:
        self.repository = "/repository"

    def serve_sftp(self) -> None:
        for name in ("host", "client"):
            ENGINE.run(
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-f",
                str(self.home / "server" / name),
            )
        key = (self.home / "server" / "client").read_bytes()
        (self.home / "secrets" / "offsite_ssh_key").write_text(base64.b64encode(key).decode())
        public = (self.home / "server" / "host.pub").read_text()
        known = self.home / "tree" / "current" / "config" / "known_hosts"
        known.write_text(f"[{self.server}]:2222 {public}")
        self.repository = f"sftp://root@{self.server}:2222//srv/copies"
        self.start(
            "/usr/sbin/sshd", "-D", "-e", "-p", "2222", "-h", "/srv/host", "-o", "StrictModes=no",
            "-o", "AuthorizedKeysFile=/srv/client.pub", "-o", "Subsystem=sftp internal-sftp",
        )  # fmt: skip

    def serve_rest(self) -> None:
        (self.home / "secrets" / "offsite_rest_password").write_text(self.password)
        self.repository = f"rest:https://{self.server}:8000/"
        certificate, key = self.certificate()
        self.start(
            "rclone", "serve", "restic", "--addr", ":8000", "--cert", certificate, "--key", key,
            "--user", "copies", "--pass", self.password, "/srv/copies",
        )  # fmt: skip

    def serve_s3(self) -> None:
        (self.home / "secrets" / "offsite_s3_access_key").write_text("copies:keeper")
        (self.home / "secrets" / "offsite_s3_secret_key").write_text(self.password)
        # The bucket is not there before the first copy.
        self.repository = f"s3:https://{self.server}:8000/bucket/path"
        self.start("sh", "/s3.sh", "copies:keeper", self.password, *self.certificate())

    def certificate(self) -> tuple[str, str]:
        """The server's certificate and key, by their names there; the keeper trusts the issuer."""
        authority = issue("authority", authority=True)
        pair = issue(self.server, by=authority).save(self.home / "server", authority)
        (self.home / "tree" / "current" / "config" / "ca.pem").write_text(authority.pem)
        certificate, key = (f"/srv/{Path(path).name}" for path in pair)
        return certificate, key

    def start(self, *command: str) -> None:
        ENGINE.run(
            "docker", "run", "--detach", f"--name={self.server}", f"--network={NAME}",
            f"--volume={self.home}/server:/srv", IMAGE, *command,
        )  # fmt: skip
        self.wait()

    def wait(self) -> None:
        port = 2222 if self.kind == "sftp" else 8000
        probe = f"import socket; socket.create_connection(('{self.server}', {port}), 2)"
        wait_for(
            "the server",
            lambda: ENGINE.succeeds(
                "docker", "run", "--rm", f"--network={NAME}", self.image, "python3", "-c", probe
            ),
        )

    def command(self, *words: str) -> list[str]:
        mounts = {
            "source": "/source:ro", "queue": "/redis:ro", "state": "/var/lib/offsite",
            "secrets": "/run/secrets:ro", "tree": "/etc/compose-stack:ro",
            "server/copies": "/repository",
        }  # fmt: skip
        return [
            "docker", "run", "--rm", "--cap-drop=ALL", "--cap-add=DAC_READ_SEARCH", "--read-only",
            "--tmpfs=/tmp", f"--hostname={NAME}", f"--network={NAME}",
            *(f"--volume={self.home / name}:{target}" for name, target in mounts.items()),
            f"--env=OFFSITE_REPOSITORY={self.repository}", "--env=OFFSITE_MINUTES=15",
            "--env=OFFSITE_REST_USER=copies", "--env=OFFSITE_HOST=test", self.image, *words,
        ]  # fmt: skip

    def keeper(self, verb: str) -> dict[str, Any]:
        """What it answers, be it that it refuses."""
        done = subprocess.run(
            self.command(*KEEPER, verb), capture_output=True, text=True, timeout=180, check=False
        )
        for secret in ("the-key-of-the-copy", self.password, PLANTED):
            assert secret not in done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    @contextlib.contextmanager
    def without(self, path: Path) -> Iterator[None]:
        aside = path.rename(path.with_name(f"{path.name}.aside"))
        try:
            yield
        finally:
            if path.is_dir():
                path.rmdir()
            aside.rename(path)

    @contextlib.contextmanager
    def instead(self, path: Path, text: str) -> Iterator[None]:
        before = path.read_text()
        path.write_text(text)
        try:
            yield
        finally:
            path.write_text(before)

    @contextlib.contextmanager
    def damaged(self, how: str) -> Iterator[None]:
        secrets = self.home / "secrets"
        if how == "the wrong key":
            with self.instead(secrets / "offsite_password", "another-key"):
                yield
        elif how == "a repository that is gone":
            # As a disk that is not mounted: its place is there, and empty.
            config = {"s3": "disk/containers"}.get(self.kind, "config")
            with self.without(self.place / config):
                yield
        elif how == "another password":
            name = {"s3": "offsite_s3_secret_key"}.get(self.kind, "offsite_rest_password")
            with self.instead(secrets / name, "another-password"):
                yield
        elif how == "another host's key":
            known = self.home / "tree" / "current" / "config" / "known_hosts"
            with self.instead(known, f"[{self.server}]:2222 {HOST_KEY}\n"):
                yield
        else:
            ENGINE.run("docker", "stop", "--time=1", self.server)
            try:
                yield
            finally:
                ENGINE.run("docker", "start", self.server)
                self.wait()


HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
DAMAGE = [
    ("local", "the wrong key", "The key does not open the repository"),
    ("local", "a repository that is gone", "The repository is gone: where it was is none"),
    ("sftp", "the wrong key", "The key does not open the repository"),
    ("sftp", "a repository that is gone", "The repository is gone: where it was is none"),
    ("sftp", "a server that is away", "The repository cannot be reached"),
    ("sftp", "another host's key", "shows another key than offsite_known_hosts"),
    ("rest", "a repository that is gone", "The repository is gone: where it was is none"),
    ("rest", "a server that is away", "The repository cannot be reached"),
    ("rest", "another password", "The server does not let us in"),
    ("s3", "a repository that is gone", "The repository is gone: where it was is none"),
    ("s3", "another password", "The server does not let us in"),
]
"""What may happen to a copy, by where it is, and the reason that must be given for it."""


@pytest.fixture(scope="module")
def servers(copied: World) -> Iterator[str]:
    """The image of the keeper; beside it there is a network, and an image of servers."""
    image: str = copied.stack.one("offsite")["Config"]["Image"]
    here = Path(__file__).parent / "servers"
    ENGINE.run(
        "docker", "build", "--quiet", f"--build-arg=OFFSITE_IMAGE={image}", f"--tag={IMAGE}",
        str(here), seconds=300,
    )  # fmt: skip
    ENGINE.run("docker", "network", "create", NAME)
    yield image
    ENGINE.run("docker", "network", "rm", NAME)
    ENGINE.run("docker", "image", "rm", "--force", IMAGE)


@pytest.fixture(scope="module", params=KINDS)
def copies(
    servers: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Copies]:
    made = Copies(tmp_path_factory.mktemp(request.param), request.param, servers)
    try:
        made.prepare()
        yield made
    finally:
        ENGINE.run("docker", "rm", "--force", made.server, check=False)


def test_a_copy(copies: Copies) -> None:
    """FS-7: what only its owner may read is in it; nothing of it can be read without the key."""
    first = copies.keeper("copy")
    assert first["snapshots"] == 1, first
    assert copies.keeper("copy")["snapshots"] == 2
    copies.keeper("tidy")
    assert copies.keeper("list")["snapshots"] == 2
    assert not ENGINE.succeeds("grep", "-rqF", PLANTED, str(copies.place))
    found = copies.keeper("check")
    assert found == {"checked": "all"}


def test_what_may_happen_to_it(copies: Copies) -> None:
    """FS-7: each has its reason in plain words, leaves the repository alone, and passes."""
    for kind, how, reason in DAMAGE:
        if kind != copies.kind:
            continue
        before = sorted(path.name for path in copies.place.iterdir())
        with copies.damaged(how):
            there = sorted(path.name for path in copies.place.iterdir())
            answer = copies.keeper("copy")
            assert reason in answer.get("refused", ""), (how, answer)
            assert sorted(path.name for path in copies.place.iterdir()) == there
            assert reason in copies.keeper("list")["failing"]["why"]
        assert sorted(path.name for path in copies.place.iterdir()) == before
        assert "snapshot" in copies.keeper("copy"), how
        assert copies.keeper("list")["failing"] is None


def test_a_damaged_part(copies: Copies) -> None:
    """FS-7: found by the check, cut as well as flipped, and mended by what is still here."""
    for cut in (True, False):
        packs = {"s3": "disk/objects/*/*/*/*.data"}.get(copies.kind, "data/*/*")
        pack = max(copies.place.glob(packs), key=lambda path: path.stat().st_size)
        content = pack.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        pack.chmod(0o600)
        pack.write_bytes(content[:middle] if cut else flipped)
        answer = copies.keeper("check")
        assert answer.get("refused", "").startswith("A part of the repository is damaged"), answer
        assert "what is still here was copied again" in answer["refused"], answer
        assert copies.keeper("list")["unchecked"]
        if copies.kind == "s3":  # takes away what is damaged, and goes on to list it
            return
        assert copies.keeper("check") == {"checked": "all"}
        assert copies.keeper("list")["unchecked"] is None


@contextlib.contextmanager
def redis(image: str, data: Path) -> Iterator[Callable[..., str]]:
    """A server as the stack's for sessions and queues, on these files; what asks it."""
    name = f"{NAME}-redis"
    ENGINE.run(
        "docker", "run", "--detach", f"--name={name}", "--network=none", "--user=999:1000",
        "--cap-drop=ALL", f"--volume={data}:/data", "--entrypoint=redis-server", image,
        "--dir", "/data", "--appendonly", "yes", "--appendfsync", "always",
    )  # fmt: skip

    def ask(*words: str) -> str:
        return ENGINE.run("docker", "exec", name, "redis-cli", *words).strip()

    try:
        wait_for("Redis", lambda: ask("ping") == "PONG")
        yield ask
    finally:
        ENGINE.run("docker", "rm", "--force", name)


# Each is sent when the one before has been answered, and takes the place of one 2000 before.
WRITES = """
i=0 rest=$(printf %01500d 0)
while :; do i=$((i+1)); echo "mset k:$((i % 2000)) $i.$rest last $i"; done | redis-cli > /dev/null
"""
LACKING = """
local last, lacking = tonumber(redis.call('get', 'last')), 0
for i = last - 1999, last do
    if redis.call('get', 'k:' .. i % 2000) ~= i .. '.' .. string.rep('0', 1500) then
        lacking = lacking + 1
    end
end
return lacking
"""


@pytest.mark.parametrize("copies", ["local"], indirect=True)
def test_redis_is_copied_whole(copied: World, copies: Copies, tmp_path: Path) -> None:
    """FS-7: while its files grow and are rewritten; a server started on the copy lacks nothing."""
    image = copied.stack.one("redis-queue")["Config"]["Image"]
    source = copies.home / "queue"
    shutil.rmtree(source / "appendonlydir")
    shutil.chown(source, 999, 1000)
    with redis(image, source) as ask:
        writer = subprocess.Popen(["docker", "exec", f"{NAME}-redis", "sh", "-c", WRITES])
        wait_for("writes", lambda: int(ask("get", "last") or 0) > 2000)
        acknowledged = int(ask("get", "last"))
        keeper = subprocess.Popen(copies.command(*KEEPER, "copy"), stdout=subprocess.PIPE)
        while keeper.poll() is None:
            ask("bgrewriteaof")
        assert "snapshot" in json.loads(keeper.communicate()[0])
        written = int(ask("get", "last"))
    writer.wait(10)
    back(copies.image, copies.place, copies.home / "secrets" / "offsite_password", tmp_path)
    ENGINE.run("chown", "-R", "999:1000", str(tmp_path / REDIS))
    with redis(image, tmp_path / REDIS) as ask:
        assert acknowledged <= int(ask("get", "last")) <= written
        assert ask("eval", LACKING, "0") == "0"


@pytest.mark.parametrize("copies", ["local"], indirect=True)
def test_another_key_in_its_place(copies: Copies) -> None:
    """FS-7, FS-8: it opens all that there is; the one before nothing, and a third party's stays."""
    key, shelf = copies.home / "secrets" / "offsite_password", copies.home / "source" / "secrets"
    shelf /= ".versions/offsite_password"
    shelf.mkdir(parents=True)

    def restic(password: str, *words: str) -> bool:
        script = (
            'printf %s "$0" > /tmp/key; restic --repo=/repository --password-file=/tmp/key "$@"'
        )
        return ENGINE.succeeds(*copies.command("sh", "-c", script, password, "--no-cache", *words))

    keys = [key.read_text(), "the-next-key-of-the-copy", "of-somebody-else"]
    snapshots = copies.keeper("copy")["snapshots"]
    add = 'printf %s "$0" > /tmp/other; exec restic --no-cache "$@" --new-password-file=/tmp/other'
    words = ("--repo=/repository", "--password-file=/run/secrets/offsite_password", "key", "add")
    assert ENGINE.succeeds(*copies.command("sh", "-c", add, keys[2], *words))
    (shelf / "0123456789ab").write_text(keys[0])
    with copies.instead(key, keys[1]):
        for _ in range(2):
            assert copies.keeper("rekey") == {"rekeyed": True}
        assert [restic(item, "cat", "config") for item in keys] == [False, True, True]
        assert copies.keeper("copy")["snapshots"] == snapshots + 1
    # Without being asked, and hidden from servers: whatever was interrupted, the next copy is made.
    (shelf / ".ba9876543210").write_text(keys[1])
    assert copies.keeper("copy")["snapshots"] == snapshots + 2
    assert [restic(item, "cat", "config") for item in keys] == [True, False, True]
    shutil.rmtree(shelf)


@pytest.mark.parametrize("copies", ["local"], indirect=True)
def test_no_room(copies: Copies) -> None:
    """FS-7: a full disk is said, and once there is room the copy is made."""
    size = sum(path.stat().st_size for path in copies.place.rglob("*")) + (4 << 20)
    content = copies.place.rename(copies.place.with_name("content"))
    copies.place.mkdir()
    ENGINE.run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(copies.place))
    large = copies.home / "source" / "large"
    try:
        shutil.copytree(content, copies.place, dirs_exist_ok=True)
        large.write_bytes(os.urandom(16 << 20))
        began = time.monotonic()
        assert "There is no room left" in copies.keeper("copy").get("refused", "")
        assert time.monotonic() - began < 60
        large.unlink()
        assert "snapshot" in copies.keeper("copy")
    finally:
        ENGINE.run("umount", "--lazy", str(copies.place))
        large.unlink(missing_ok=True)


def recover(world: World, interrupt_at: str | None = None, **variables: Any) -> Run:
    return playbook(
        INVENTORY, name="recover.yml", interrupt_at=interrupt_at, seconds=600,
        variables={**SETTINGS, **OFFSITE, "recover_confirm": BENCH.project, **variables},
    )  # fmt: skip


def definitions(world: World) -> dict[str, Any]:
    """All that RabbitMQ has been told, but for the salt of its passwords."""
    words = ("rabbitmqctl", "--silent", "export_definitions", "-")
    text = world.stack.engine.run(
        "docker", "exec", "--env=HOME=/var/lib/rabbitmq", world.stack.one("rabbitmq")["Id"], *words
    )
    found: dict[str, Any] = json.loads(text[text.index("{") :])
    for user in found["users"]:
        del user["password_hash"]
    return found


def blank() -> bool:
    """Whether nothing of the stack is on this machine."""
    label = f"--filter=label=com.docker.compose.project={BENCH.project}"
    lists = ENGINE.run("docker", "ps", "--all", "--quiet", label)
    lists += ENGINE.run("docker", "volume", "ls", "--quiet", label)
    return not (lists or Path(BENCH.directory).exists() or BENCH.backups.exists())


def test_another_host(copied: World, tmp_path: Path) -> None:
    """FS-7: by one verb, with the key and the inventory, nothing copied is lost."""
    account = copied.stack.login("redis_queue_password")
    redis = ("redis-cli", "--no-auth-warning", "--user", account[0], "--pass", account[1])
    name = copied.create()
    copied.stack.execute("redis-queue", *redis, "set", "session:known", name)
    told = definitions(copied)
    assert {queue["name"] for queue in told["queues"]} == {"birthdays", "birthdays.dead"}
    copied.stack.execute("backup", *KEEPER, "flush")
    copied.stack.execute("offsite", *KEEPER, "copy")
    known = sorted(path.name for path in (PLACE / "snapshots").iterdir())
    secret = Path(BENCH.directory, "secrets", "operator_password").read_text()
    key, wrong = tmp_path / "key", tmp_path / "wrong"
    key.write_text(Path(BENCH.directory, "secrets", "offsite_password").read_text() + "\n")
    wrong.write_text("another-key\n")
    mine = {"recover_key_file": str(key)}

    lives = copied.stack.lives()
    run = recover(copied, **mine).failed()
    assert f"has a stack called {BENCH.project}, or data of one" in said(run)
    assert copied.stack.lives() == lives

    copied.run("clean.yml", clean_confirm=BENCH.project, **OFFSITE).succeeded()
    for variables, cause in (
        ({"recover_key_file": str(wrong)}, "The key does not open the repository"),
        ({**mine, "recover_snapshot": "nonsense"}, f"{known[-1][:8]} of 20"),
        ({**mine, "offsite_repository": f"{PLACE}-gone"}, f"There is no {PLACE}-gone on the host"),
    ):
        run = recover(copied, **variables).failed()
        assert cause in said(run), variables
        assert blank(), variables

    # Interrupted in the middle of it, and typed again: all files are there, and no key is needed.
    run = recover(copied, interrupt_at="Lay it out beside the running database", **mine).failed()
    assert key.read_text().strip() not in run.output
    assert "on this host has not ended" in said(copied.run("site.yml", **OFFSITE).failed())
    recover(copied).succeeded()
    assert sorted(path.name for path in (PLACE / "snapshots").iterdir()) == known
    copied.settle()
    assert name in copied.names()
    assert copied.stack.execute("redis-queue", *redis, "get", "session:known").strip() == name
    assert Path(BENCH.directory, "secrets", "operator_password").read_text() == secret
    wait_for("two queues", lambda: len(definitions(copied)["queues"]) == 2, 60, 2)
    assert definitions(copied) == told
    # From now on it is this host that copies there.
    copied.stack.execute("offsite", *KEEPER, "copy")
    assert len(list((PLACE / "snapshots").iterdir())) == len(known) + 1
    assert copied.run("site.yml", **OFFSITE).succeeded().changed == 0
