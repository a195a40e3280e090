"""Keeps an encrypted copy of the backups, and of what another host needs, elsewhere, by restic.

    keeper.py serve     copy, forget and check when it is due, say how it goes on /metrics
    keeper.py copy      copy now
    keeper.py check     read the repository, a seventh of it each day of the week
    keeper.py tidy      forget what is not to be kept
    keeper.py list      how it goes
    keeper.py rekey     have the present key open the repository, and no earlier one
    keeper.py begin     make a repository where the one that was there is gone
    keeper.py look      what a copy holds, and which others there are
    keeper.py restore   put a copy in its place on another host
    keeper.py healthy   whether `serve` answers

What is due is judged by what is there: nothing is scheduled, so nothing is missed.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import datetime as dt
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keeping import (
    EVERY,
    Refused,
    State,
    alone,
    answered,
    ask_health,
    gauges,
    now,
    pause,
    run,
    say,
    serve_metrics,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HOME = Path("/var/lib/offsite")
SOURCE = Path("/source")
QUEUE = Path("/redis")
COPY = HOME / "redis"
TARGET = Path("/target")
SECRETS = Path("/run/secrets")
CONFIG = Path("/etc/compose-stack/current/config")
MEMORY = Path("/tmp")  # noqa: S108  memory of its own
PORT = 9121
ASKED_AT = Path("/run/offsite/socket")
"""Where a drill asks for what lies in the copy."""
DAY = dt.timedelta(days=1)
KEEP = (
    ("--keep-hourly", "48", "--keep-daily", "7", "--keep-weekly", "4", "--keep-monthly", "6")
)  # fmt: skip
SMALL = 1 << 30
"""Bytes up to which a check reads all of the repository, and not a seventh."""
PIECE = 1 << 17
"""Bytes of a copy that are given at once."""
ATTEMPTS = 5
"""Copies that are made in a row when what is copied changes meanwhile."""
SETTLED = 2
"""Seconds after which what is committed has been received as WAL."""
WAITING = ("--retry-lock", "30m")
"""For what nobody may do while a drill is given a copy."""
PATIENCE = 60
"""Seconds within which a repository must open; restic would go on for a quarter of an hour."""
SSH = (
    "-F", "/dev/null", "-i", str(MEMORY / "ssh_key"),
    *("-o", f"UserKnownHostsFile={CONFIG}/known_hosts"), *("-o", "StrictHostKeyChecking=yes"),
    *("-o", "BatchMode=yes"), *("-o", "ConnectTimeout=15"), *("-o", "ServerAliveInterval=15"),
)  # fmt: skip
BEGIN = "docker compose exec offsite python3 /etc/compose-stack/current/bin/keeper.py begin"
GONE = "restic ended with 10:|config cannot be loaded.*does not exist|bucket does not exist"
DAMAGED = "A part of the repository is damaged."
REASONS = {
    "The key does not open the repository, which was made with another one: set that as "
    "offsite_password in secrets_values.": ("wrong password or no key found",),
    "There is no room left where the repository is.": (
        "no space left",
        "[Qq]uota exceeded",
        "[Ii]nsufficient [Ss]torage",
    ),
    "The SFTP server shows another key than offsite_known_hosts has.": (
        "Host key verification failed",
    ),
    "The server does not let us in: its account, key or password has changed.": (
        r"Permission denied \(",
        "401 Unauthorized",
        "403 Forbidden",
        "Access Denied",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch|request signature we calculated",
    ),
    "The server's certificate is not to be trusted: see offsite_ca_certificate.": (
        "x509: certificate",
    ),
    "Another restic has locked the repository.": ("already locked",),
    "The repository cannot be reached.": (
        "connect to host",
        "[Cc]onnection (refused|reset|closed)",
        "no such host",
        "Could not resolve",
        "timed out|i/o timeout|took more than",
        "[Nn]o route",
        "unreachable",
    ),
    DAMAGED: (
        "unexpected file size",
        "hash mismatch|does not match|contains [0-9]+ errors",
        "ciphertext verification failed",
        "not found in (any )?index",
        "pack [0-9a-f]+: does not exist|specified key does not exist",
        "invalid data returned",
    ),
}

STATE = State(
    HOME / "keeper.json",
    began=None, repository=None, succeeded=None, seconds=0, snapshots=0, bytes=0, failing=None,
    tidied=None, checked=None, unchecked=None, restoring=None, recovered=None,
    identity=None, adopted=None,
)  # fmt: skip


@dataclass(frozen=True)
class Policy:
    repository: str
    minutes: int
    rest_user: str
    host: str
    """By which snapshots are known for this stack's."""

    @classmethod
    def from_environment(cls) -> Policy:
        given = os.environ
        return cls(
            given["OFFSITE_REPOSITORY"], int(given["OFFSITE_MINUTES"]),
            given["OFFSITE_REST_USER"], given["OFFSITE_HOST"],
        )  # fmt: skip


# -- restic -------------------------------------------------------------------------------------


def secret(name: str) -> str:
    return (SECRETS / name).read_text().strip()


def write(name: str, text: str) -> Path:
    """A file in memory, for this user alone."""
    path = MEMORY / name
    # At once, as another thread's restic may be about to read it.
    descriptor, fresh = tempfile.mkstemp(dir=MEMORY)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return Path(fresh).rename(path)


def options(policy: Policy, key_file: Path | None = None) -> list[str]:
    """Where the repository is and what it is entered with: in files, seen by nobody else."""
    address = policy.repository
    found = [
        "--cache-dir",
        str(HOME / "cache"),
        "--password-file",
        str(key_file or SECRETS / "offsite_password"),
    ]
    if address.startswith("sftp:"):
        key = base64.b64decode(secret("offsite_ssh_key")).decode()
        write("ssh_key", key.rstrip() + "\n")
        found += ["-o", "sftp.args=" + " ".join(SSH)]
    elif address.startswith("s3:"):
        access, key = secret("offsite_s3_access_key"), secret("offsite_s3_secret_key")
        write("s3", f"[default]\naws_access_key_id = {access}\naws_secret_access_key = {key}\n")
    elif address.startswith("rest:") and policy.rest_user:
        scheme, _, rest = address.removeprefix("rest:").partition("://")
        account = [policy.rest_user, secret("offsite_rest_password")]
        user, password = (urllib.parse.quote(item, safe="") for item in account)
        address = f"rest:{scheme}://{user}:{password}@{rest}"
    if (CONFIG / "ca.pem").read_text().strip():
        found += ["--cacert", str(CONFIG / "ca.pem")]
    return [*found, "--repository-file", str(write("repository", address))]


def environment() -> dict[str, str]:
    (HOME / "tmp").mkdir(exist_ok=True)
    return {
        "AWS_SHARED_CREDENTIALS_FILE": str(MEMORY / "s3"), "HOME": str(HOME),
        "TMPDIR": str(HOME / "tmp"),
    }  # fmt: skip


def restic(
    policy: Policy,
    verb: str,
    *arguments: str,
    seconds: float | None = None,
    key_file: Path | None = None,
) -> str:
    """What restic says.

    Raises:
        Refused: it failed; the text says why, and then what restic said.
    """
    try:
        command = ("restic", *options(policy, key_file), verb, *arguments)
        return run(*command, seconds=seconds, **environment())
    except Refused as error:
        text = without_secrets(explained(str(error), error.output))
        raise Refused(text, without_secrets(error.output)) from None


def without_secrets(text: str) -> str:
    for path in SECRETS.glob("offsite_*"):
        text = text.replace(secret(path.name), "***")
    return text


def explained(said: str, output: str) -> str:
    """The reason in plain words, before what was said."""
    for reason, patterns in REASONS.items():
        if re.search("|".join(patterns), said + output):
            return f"{reason} {said}"
    return said


def reach(policy: Policy) -> None:
    """Connect to the server first: restic waits for one that is away, and loses what ssh says.

    Raises:
        Refused: nobody answers there, or we are not let in.
    """
    scheme, _, rest = policy.repository.partition(":")
    if scheme == "sftp":
        if rest.startswith("//"):
            parts = urllib.parse.urlsplit(rest)
            host, port = f"{parts.username}@{parts.hostname}", parts.port or 22
        else:
            host, port = rest.partition(":")[0], 22
        try:
            run("ssh", *SSH, "-p", str(port), "-s", host, "sftp", seconds=PATIENCE)
        except Refused as error:
            raise Refused(explained(str(error), error.output)) from None
    elif scheme in ("s3", "rest"):
        parts = urllib.parse.urlsplit(rest)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname or "", port), timeout=15).close()
        except OSError as error:
            text = f"The repository cannot be reached. {parts.hostname}:{port}: {error}"
            raise Refused(text) from None


def opened(policy: Policy) -> None:
    """See that the repository is there and is the one that was; make one for the first copy.

    Raises:
        Refused: it is not, or cannot be opened.
    """
    options(policy)  # with the key that ssh needs
    reach(policy)
    known = STATE.read()["repository"]
    if known is None:
        try:
            restic(policy, "init", seconds=PATIENCE)
        except Refused as error:
            if "already" not in str(error):
                raise
    replace_keys(policy)
    try:
        text = restic(policy, "cat", "config", seconds=PATIENCE)
    except Refused as error:
        # By restic's own words: neither a server that is away nor a wrong key is an empty place.
        if not re.search(GONE, str(error) + error.output):
            raise
        raise Refused(
            "The repository is gone: where it was is none. Is its disk mounted, and was it when "
            "`offsite` was started? Nothing was made in its place; to begin another one on "
            f"purpose: {BEGIN}"
        ) from None
    found = json.loads(text[text.index("{") : text.rindex("}") + 1])["id"]
    if known and found != known:
        raise Refused(
            f"The repository is another than the one that was there: {found[:8]}, not {known[:8]}. "
            f"To go on with it on purpose: {BEGIN}"
        )
    STATE.update(repository=found)
    # Of a process that was killed; what another host holds stays for half an hour.
    restic(policy, "unlock", seconds=PATIENCE)


def former_keys(policy: Policy) -> dict[Path, str]:
    """Files of earlier keys that open the repository, and what restic calls each.

    Raises:
        Refused: it cannot be told.
    """
    found = {}
    for path in sorted((SOURCE / "secrets/.versions/offsite_password").glob("*")):
        if path.read_text().strip() == secret("offsite_password"):
            continue
        try:
            keys = json.loads(
                restic(policy, "key", "list", "--json", seconds=PATIENCE, key_file=path)
            )
        except Refused as error:
            # That key is gone already, or there is no repository yet.
            if re.search("no key found|config cannot be loaded|ended with 10:", str(error)):
                continue
            raise
        found[path] = next(item["id"] for item in keys if item["current"])
    return found


def replace_keys(policy: Policy) -> None:
    """Have the present key open the repository, and no earlier one. Keys of others stay.

    Raises:
        Refused: it failed, and may be done again.
    """
    new = str(SECRETS / "offsite_password")
    for path, identifier in former_keys(policy).items():
        # Of a process that was killed.
        restic(policy, "unlock", seconds=PATIENCE, key_file=path)
        try:
            restic(policy, "cat", "config", seconds=PATIENCE)
        except Refused:
            restic(
                policy, "key", "add", "--new-password-file", new, seconds=PATIENCE, key_file=path
            )
        restic(policy, "key", "remove", *WAITING, identifier)


def rekey(policy: Policy) -> dict[str, Any]:
    """Replace earlier keys now, unless that has been done."""
    options(policy)  # with the key that ssh needs
    reach(policy)
    if former_keys(policy):
        with alone(HOME / ".lock"):
            replace_keys(policy)
    return {"rekeyed": True}


# -- copying ------------------------------------------------------------------------------------


def picture() -> list[tuple[str, int]]:
    """Which backups and dumps there are, and since when as they are."""
    places = ("backup/main*/meta/*", "backup/dumps/[0-9]*")
    found = [path for place in places for path in SOURCE.glob(place)]
    result = []
    for path in sorted(found):
        with contextlib.suppress(FileNotFoundError):  # gone meanwhile
            result.append((path.name, path.stat().st_mtime_ns))
    return result


def copy_queue() -> None:
    """Copy Redis' files here, all of them of one moment before the backups are copied.

    Redis only appends to the last file that its manifest names and changes none of the others; it
    removes a file once a newer manifest is in place, and uses no number twice. While the manifest
    stays the same, a copy has all that had been acknowledged when it began; what is cut at its end,
    Redis drops at its start.

    It comes first, because what has left the queue must be in the WAL that is copied: an event that
    is in both is counted once, and one that is in neither would be lost.

    Raises:
        Refused: there is nothing to copy, or it never rests.
    """
    if not QUEUE.is_dir():  # no Redis in this stack, or no more
        shutil.rmtree(COPY, ignore_errors=True)
        return
    manifest = QUEUE / "appendonlydir" / "appendonly.aof.manifest"
    for _ in range(ATTEMPTS):
        shutil.rmtree(COPY, ignore_errors=True)
        try:
            before = manifest.read_text()
            shutil.copytree(QUEUE, COPY, ignore=shutil.ignore_patterns("temp-*"))
        except (FileNotFoundError, shutil.Error) as error:  # gone meanwhile, or not yet there
            failed = str(error)
            time.sleep(1)
            continue
        if manifest.read_text() == before:
            break
        failed = "it wrote all of them anew each time"
    else:
        raise Refused(f"Redis' files could not be copied: {failed}")
    time.sleep(SETTLED)


def snapshots(policy: Policy) -> list[dict[str, Any]]:
    """Those of this stack, the oldest first."""
    found = json.loads(restic(policy, "snapshots", "--json", "--host", policy.host)) or []
    return sorted(found, key=taken)


def identified(policy: Policy, known: bool) -> str:
    """The tag of this host's copies; nobody else copies here under the same name.

    Raises:
        Refused: somebody does, such as the host that was lost: the two could not be told apart.
    """
    state, found = STATE.read(), snapshots(policy)
    mine = state["identity"] or uuid.uuid4().hex
    # Copies of before had no tag.
    untagged = known and state["identity"] is None and state["adopted"] is None
    STATE.update(identity=mine)
    if not found:
        return mine
    last = found[-1]
    if state["adopted"] == "next" or untagged:
        STATE.update(adopted=last["id"])
    elif mine not in last.get("tags", []) and last["id"] != state["adopted"]:
        raise Refused(
            f"Another host has copied here as {policy.host}: {told(last)}. Stop it if it is the "
            "one before; else give one of the two another stack_project or offsite_repository. If "
            f"this host is to go on from there: {BEGIN}"
        )
    return mine


def copy(policy: Policy) -> dict[str, Any]:
    """One snapshot of everything, in which each backup is whole or not there.

    Nothing is locked meanwhile: a copy in which a backup came or went is made again, which takes
    only what is new. WAL is in one of two directories, which are read in the order it moves.

    Raises:
        Refused: there is none.
    """
    began, known = time.monotonic(), STATE.read()["repository"] is not None
    opened(policy)
    mine = identified(policy, known)
    copy_queue()
    queue = [str(COPY)] if COPY.is_dir() else []
    for attempt in range(1, ATTEMPTS + 1):
        before = picture()
        try:
            text = restic(
                policy, "backup", "--json", "--quiet", "--host", policy.host, "--tag", mine,
                "--exclude", "/source/backup/dumps/.new", str(SOURCE), *queue,
            )  # fmt: skip
        except Refused as error:
            # What has gone meanwhile; anything else is no better a second time.
            gone = "restic ended with 3:" in str(error) and "no such file" in error.output
            if not gone or attempt == ATTEMPTS:
                raise
            continue
        found = json.loads(text.splitlines()[-1])
        if picture() == before:
            break
        restic(policy, "forget", *WAITING, found["snapshot_id"])
    else:
        raise Refused(f"The backups changed during each of {ATTEMPTS} copies.")
    count = len(snapshots(policy))
    seconds = round(time.monotonic() - began, 1)
    STATE.update(succeeded=now().isoformat(), seconds=seconds, snapshots=count)
    return {"snapshot": found["snapshot_id"][:8], "seconds": seconds, "snapshots": count}


def tidy(policy: Policy) -> dict[str, Any]:
    """Forget what is not to be kept, and give its room free."""
    restic(policy, "forget", "--host", policy.host, "--group-by", "host", *KEEP, "--prune")
    found = json.loads(restic(policy, "stats", "--mode", "raw-data", "--json"))
    STATE.update(tidied=now().isoformat(), bytes=found["total_size"])
    return {"bytes": found["total_size"]}


def check(policy: Policy) -> dict[str, Any]:
    """Read the repository, all of a small one and else a seventh; mend what is damaged.

    Raises:
        Refused: something is damaged. What could be saved was, and the next copy brings the rest.
    """
    seventh = f"{now().isoweekday()}/7"
    small = STATE.read()["bytes"] < SMALL
    try:
        opened(policy)
        restic(policy, "check", "--read-data-subset", "100%" if small else seventh)
    except Refused as error:
        why = str(error)
        if why.startswith(DAMAGED):
            why += mended(policy, error.output)
        STATE.update(unchecked={"at": now().isoformat(), "why": why})
        raise Refused(why) from None
    STATE.update(checked=now().isoformat(), unchecked=None)
    return {"checked": "all" if small else seventh}


def mended(policy: Policy, output: str) -> str:
    """Take damaged parts out, so that the next copy brings what was in them; what was done."""
    advised = re.search(r"restic repair packs ([0-9a-f ]+)", output)
    try:
        if advised:
            restic(policy, "repair", "packs", *advised[1].split())
        else:
            restic(policy, "repair", "index")
        copy(policy)
        restic(policy, "repair", "snapshots", "--forget")
    except Refused as error:
        return f" It could not be mended: {error}"
    finally:
        for path in Path.cwd().glob("pack-*"):  # as restic found them
            path.unlink()
    return " What could be saved was, and what is still here was copied again; it is checked anew."


# -- giving to a drill what lies there ----------------------------------------------------------


GIVING = threading.Lock()
"""While something is given nothing is removed or mended: restic would refuse. Copies go on."""


def newest(policy: Policy) -> dict[str, str]:
    """The last snapshot, and since when what was there is in it.

    Raises:
        Refused: there is none, or the repository cannot be opened.
    """
    if STATE.read()["repository"] is None:
        raise Refused("There is no copy yet: `make backups` says how the first one goes.")
    opened(policy)
    if not (found := snapshots(policy)):
        raise Refused("There is no copy: the repository is there, and holds nothing of this stack.")
    return {"snapshot": found[-1]["id"], "at": found[-1]["time"]}


def contents(policy: Policy, snapshot: str, path: str) -> Iterator[bytes]:
    """A file that lies in a snapshot, or a directory (which ends with a slash) as a tar archive.

    Raises:
        Refused: it does not, or cannot be read.
    """
    # Of the backups alone: whoever keeps them need not learn what else is copied.
    if not re.fullmatch(r"(main(-\d+)?|dumps)/[\w./-]+", path) or ".." in path:
        raise Refused(f"'{path}' is not given to anybody.")
    if not re.fullmatch(r"[0-9a-f]{64}", snapshot):
        raise Refused(f"'{snapshot}' is no snapshot.")
    words = ["dump", *WAITING, snapshot, f"/source/backup/{path.rstrip('/')}"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            ["restic", *options(policy), *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=said, env={**os.environ, **environment()},
        )  # fmt: skip
        try:
            while process.stdout and (piece := process.stdout.read(PIECE)):
                yield piece
        finally:  # whoever asked may have gone
            process.terminate()
            code = process.wait()
        said.seek(0)
        output = said.read().decode(errors="replace")
    if code:
        text = f"restic ended with {code}: " + " ".join(output.strip().splitlines()[-3:])
        raise Refused(without_secrets(explained(text, output)))


def answer(policy: Policy, asked: dict[str, Any], peer: Connection) -> dict[str, Any]:
    """Send what is asked for in pieces; what is to be said in the end.

    Raises:
        Refused: it cannot be had.
    """
    if "path" in asked:
        for piece in contents(policy, str(asked["snapshot"]), str(asked["path"])):
            peer.send_bytes(piece)
        return {}
    if asked.get("copy"):
        noted(copy, policy)
    return newest(policy)


class Giver(threading.Thread):
    """Gives a drill what it asks for, one at a time: pieces, an empty one, and how it went."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(daemon=True)
        self.policy = policy

    def run(self) -> None:
        ASKED_AT.unlink(missing_ok=True)
        listener = Listener(str(ASKED_AT), "AF_UNIX")
        # Whoever has the directory may: that is the keeper of the backups.
        ASKED_AT.chmod(0o666)
        gone = (EOFError, OSError, ValueError)
        while True:
            with contextlib.suppress(*gone), listener.accept() as peer, GIVING:
                self.serve(peer)

    def serve(self, peer: Connection) -> None:
        while True:
            asked = json.loads(peer.recv_bytes())
            try:
                said = answer(self.policy, asked, peer)
            except (Refused, ValueError, LookupError) as error:
                said = {"refused": str(error)}
            peer.send_bytes(b"")
            peer.send_bytes(json.dumps(said).encode())


# -- coming back --------------------------------------------------------------------------------


def reading(policy: Policy, verb: str, *arguments: str, seconds: float | None = None) -> str:
    """What restic says of a repository in which nothing is changed, no lock included."""
    return restic(policy, verb, "--no-lock", *arguments, seconds=seconds)


def identity(policy: Policy) -> str:
    """The repository's own.

    Raises:
        Refused: it cannot be opened.
    """
    options(policy)  # with the key that ssh needs
    reach(policy)
    try:
        text = reading(policy, "cat", "config", seconds=PATIENCE)
    except Refused as error:
        if "restic ended with 10:" in str(error) or "config cannot be loaded" in str(error):
            text = "There is no repository at offsite_repository: is its disk mounted, and the path"
            raise Refused(f"{text} the one that was copied to?") from None
        raise
    return str(json.loads(text[text.index("{") : text.rindex("}") + 1])["id"])


def taken(snapshot: dict[str, Any]) -> dt.datetime:
    return dt.datetime.fromisoformat(snapshot["time"])


def told(snapshot: dict[str, Any]) -> str:
    return f"{snapshot['short_id']} of {shown(taken(snapshot))} UTC"


def chosen(policy: Policy, asked: str) -> dict[str, Any]:
    """The copy that was asked for, or the newest of this stack.

    Raises:
        Refused: there is none; those that there are.
    """
    found = json.loads(reading(policy, "snapshots", "--json", seconds=PATIENCE)) or []
    mine = sorted((item for item in found if item["hostname"] == policy.host), key=taken)
    fitting = [item for item in mine if item["id"].startswith(asked)]
    if not mine:
        others = ", ".join(sorted({item["hostname"] for item in found})) or "none"
        raise Refused(
            f"The repository has no copy of {policy.host}; it has copies of: {others}. "
            "stack_project says which is meant."
        )
    if not fitting or (asked and len(fitting) > 1):
        listed = "; ".join(told(item) for item in reversed(mine))
        raise Refused(f"SNAPSHOT={asked} names no copy, or several. There are: {listed}.")
    return dict(fitting[-1])


def look(policy: Policy, asked: str) -> dict[str, Any]:
    """What a copy holds: its age and size, and the release that ran then.

    Raises:
        Refused: there is no such copy, or the repository cannot be opened.
    """
    identity(policy)
    snapshot = chosen(policy, asked)
    size = json.loads(reading(policy, "stats", "--json", "--mode", "restore-size", snapshot["id"]))
    paths = [
        json.loads(line).get("path", "")
        for line in reading(
            policy, "ls", "--json", snapshot["id"], "/source", "/source/state/releases", str(COPY)
        ).splitlines()
    ]
    numbers = [int(name) for path in paths if (name := path.rpartition("/")[2]).isdigit()]
    release: dict[str, Any] = {}
    if numbers:
        record = f"/source/state/releases/{max(numbers)}/release.json"
        release = json.loads(reading(policy, "dump", snapshot["id"], record))
    return {
        "snapshot": snapshot["id"], "told": told(snapshot),
        "bytes": size["total_size"],
        "parts": [path.removeprefix("/source/") for path in paths if path.count("/") == 2]
        + ["redis"] * (str(COPY) in paths),
        "release": max(numbers, default=None),
        "version": release.get("version", ""), "image": release.get("images", {}).get("api", ""),
        "postgres": str(release.get("data", {}).get("postgres_version", "")),
    }  # fmt: skip


def restore(policy: Policy, asked: str, owner: str) -> dict[str, Any]:
    """Put a copy in its place, below the directories that are mounted; what was there goes.

    Redis' files, which are a copy of a copy, are given to their owner.

    One that was interrupted goes on. From the repository is read only, and the next copy to it is
    made when it is due: by then the stack serves, or its host is looked after.

    Raises:
        Refused: it failed.
    """
    began = time.monotonic()
    repository = identity(policy)
    snapshot = chosen(policy, asked)
    parts = sorted(path for path in TARGET.iterdir() if path.is_dir())
    if STATE.read()["restoring"] != snapshot["id"]:
        for path in parts:
            run("find", str(path), "-mindepth", "1", "-delete")
        STATE.update(restoring=snapshot["id"])
    for root in (SOURCE, HOME):
        mine = [path for path in parts if (path.name == COPY.name) is (root == HOME)]
        if mine:
            places = [word for path in mine for word in ("--include", f"/{path.name}")]
            root_of = f"{snapshot['id']}:{root}"
            reading(policy, "restore", root_of, "--target", str(TARGET), "--quiet", *places)
    if TARGET / COPY.name in parts:
        run("chown", "--recursive", owner, str(TARGET / COPY.name))
    os.sync()
    at = now().isoformat()
    STATE.update(
        restoring=None, repository=repository, began=at, tidied=at,
        succeeded=taken(snapshot).isoformat(), recovered=at, adopted=chosen(policy, "")["id"],
    )  # fmt: skip
    return {"seconds": round(time.monotonic() - began, 1)}


# -- going on -----------------------------------------------------------------------------------


def past(text: str | None, span: dt.timedelta) -> bool:
    return text is None or now() - dt.datetime.fromisoformat(text) >= span


def noted(action: Callable[[Policy], Any], policy: Policy) -> Any:
    """Do it, and remember whether it failed.

    Raises:
        Refused: it failed.
    """
    with alone(HOME / ".lock"):
        try:
            found = action(policy)
        except (Refused, OSError, ValueError, LookupError) as error:
            STATE.update(failing={"at": now().isoformat(), "why": str(error)})
            raise Refused(str(error)) from error
        STATE.update(failing=None)
        return found


def tend(policy: Policy) -> None:
    """Do what is due.

    Raises:
        Refused: it failed.
    """
    found = STATE.read()
    between = dt.timedelta(minutes=policy.minutes)
    if not past(found["recovered"], between):
        return
    if found["failing"] or past(found["succeeded"], between):
        done = noted(copy, policy)
        say(f"snapshot {done['snapshot']} copied in {done['seconds']} s")
    if not GIVING.acquire(blocking=False):
        return
    try:
        if past(found["tidied"], DAY):
            noted(tidy, policy)
        if found["unchecked"] or past(found["checked"], DAY):
            noted(check, policy)
    finally:
        GIVING.release()


def serve(policy: Policy) -> None:
    # restic takes all that the container may: whoever asks for its health goes first.
    os.nice(19)
    if STATE.read()["began"] is None:
        STATE.update(began=now().isoformat())
    serve_metrics(PORT, metrics)
    Giver(policy).start()
    failures = 0
    while True:
        try:
            tend(policy)
            failures = 0
        except Refused as error:
            say(str(error))
            failures += 1
        time.sleep(pause(failures) if failures else EVERY)


def metrics() -> str:
    found = STATE.read()

    def moment(name: str) -> int:
        text = found[name]
        return int(dt.datetime.fromisoformat(text).timestamp()) if text else 0

    copied = moment("succeeded")
    return gauges(
        {
            "offsite_began_timestamp_seconds": moment("began"),
            "offsite_last_success_timestamp_seconds": copied,
            "offsite_last_check_timestamp_seconds": moment("checked"),
            "offsite_failing": int(bool(found["failing"] or found["unchecked"])),
            "offsite_duration_seconds": found["seconds"],
            "offsite_size_bytes": found["bytes"],
            "offsite_snapshots": found["snapshots"],
            # As every backup says it, so that whoever lists those lists this one.
            "backup_last_success_timestamp_seconds": {'copy="offsite"': copied},
        }
    )


def begin() -> dict[str, Any]:
    """Take whatever repository is there next, or make one."""
    STATE.update(repository=None, adopted="next")
    return {"begun": True}


def main(words: Sequence[str]) -> Any:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    answers: dict[str, Callable[[Policy], Any]] = {
        "serve": serve,
        "copy": lambda policy: noted(copy, policy),
        "check": lambda policy: noted(check, policy),
        "tidy": lambda policy: noted(tidy, policy),
        "list": lambda _: STATE.read(),
        "rekey": rekey,
        "begin": lambda _: begin(),
        "look": lambda policy: look(policy, asked.snapshot),
        "restore": lambda policy: restore(policy, asked.snapshot, asked.owner),
        "healthy": lambda _: ask_health(PORT),
    }
    for verb in answers:
        chooser = verbs.add_parser(verb)
        if verb in ("look", "restore"):
            chooser.add_argument("--snapshot", default="")
        if verb == "restore":
            chooser.add_argument("--owner", default="0:0")
    asked = parser.parse_args(words)
    return answers[asked.verb](Policy.from_environment())


if __name__ == "__main__":
    answered(lambda: main(sys.argv[1:]))
