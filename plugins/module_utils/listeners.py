"""Who listens on this host's TCP ports."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104  compared with, not bound
ESTABLISHED = "01"
LISTEN = "0A"


def read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def sockets(state: str) -> Iterator[tuple[str, int, str]]:
    """Address, port and inode of each TCP socket of this host that is in a state."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in read(table).splitlines()[1:]:
            fields = line.split()
            host, _, number = fields[1].partition(":")
            if fields[3] == state:
                yield decode_address(host), int(number, 16), fields[9]


def listening_inodes(address: str, port: int) -> list[str]:
    """Return the sockets that listen on a port and stand in the way of `address`."""
    return [
        inode
        for listener, number, inode in sockets(LISTEN)
        if number == port and (listener == address or listener in WILDCARDS or address in WILDCARDS)
    ]


def decode_address(text: str) -> str:
    """Return the address that /proc/net/tcp spells as 32-bit words of host byte order."""
    words = [bytes.fromhex(text[i : i + 8]) for i in range(0, len(text), 8)]
    raw = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, raw).removeprefix("::ffff:")


def inodes_of(process: int) -> set[str]:
    """The sockets that a process has open."""
    found = set()
    try:
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            match = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
            if match:
                found.add(match.group(1))
    except OSError:
        pass
    return found


def process_of_inode(inode: str) -> int | None:
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and inode in inodes_of(int(process.name)):
            return int(process.name)
    return None


def container_publishing(containers: Iterable[dict[str, Any]], address: str, port: int) -> str:
    """The name of the container that publishes a port, of those that the engine lists."""
    for container in containers:
        for published in container.get("Ports") or []:
            host = published.get("IP", "")
            if published.get("PublicPort") == port and (
                host == address or host in WILDCARDS or address in WILDCARDS
            ):
                return str(container["Names"][0].lstrip("/"))
    return ""


def owner(containers: Iterable[dict[str, Any]], address: str, port: int) -> tuple[str, str]:
    """Return who listens on a port and how to make it stop."""
    container = container_publishing(containers, address, port)
    if container:
        return f"the container {container}", "stop that container"
    for inode in listening_inodes(address, port):
        pid = process_of_inode(inode)
        if pid is None:
            continue
        name = read(f"/proc/{pid}/comm").strip()
        command = read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
        cgroup = read(f"/proc/{pid}/cgroup")
        text = f"{name} (PID {pid}: {command[:120]})"
        identifier = re.search(r"docker[/-]([0-9a-f]{64})", cgroup)
        if identifier:
            for each in containers:
                if each["Id"] == identifier.group(1):
                    return f"{text} in the container {each['Names'][0].lstrip('/')}", (
                        "stop that container"
                    )
        unit = re.search(r"/([^/\s]+\.service)$", cgroup, re.MULTILINE)
        if unit:
            return f"{text}, of the unit {unit.group(1)}", (
                f"stop it (systemctl disable --now {unit.group(1)})"
            )
        return text, f"stop it (kill {pid})"
    hint = "" if os.geteuid() == 0 else "; only root can see which"
    return f"another process{hint}", f"find it (ss -ltnp 'sport = :{port}') and stop it"
