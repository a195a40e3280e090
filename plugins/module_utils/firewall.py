"""The host's firewall: one table of nftables that nobody else touches."""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import re
import shutil
import socket
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.listeners import ESTABLISHED, inodes_of, read, sockets

if TYPE_CHECKING:
    from collections.abc import Iterable

TABLE = "compose-stack"
RULES = Path("/etc/compose-stack/firewall.nft")
INTERFACES = Path("/sys/class/net")
NETFILTER = 12  # NETLINK_NETFILTER, which Python does not name
GET_GENERATION = 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN
REQUEST = 1


def project_of(rules: str) -> str:
    """The stack that wrote a file of rules, which says so in its first line."""
    match = re.match(r"# The firewall of ([a-z0-9_-]+)[.:]", rules)
    return match.group(1) if match else ""


def refusal() -> int:
    """Ask the kernel for nftables' generation; the number of its error, or 0.

    It answers EPERM to who may not manage the network, and another error when it has no nftables.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER) as netlink:
            netlink.settimeout(5)
            netlink.send(struct.pack("=IHHIIBBH", 20, GET_GENERATION, REQUEST, 1, 0, 0, 0, 0))
            answer = netlink.recv(4096)
    except OSError as error:
        return error.errno or errno.EIO
    (kind,) = struct.unpack_from("=H", answer, 4)
    return -int(struct.unpack_from("=i", answer, 16)[0]) if kind == 2 else 0  # NLMSG_ERROR


def ssh_ports() -> list[int]:
    """The ports that sshd is set to listen on, and the one that this session came by."""
    found = set()
    path = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path:
        done = subprocess.run([path, "-T"], capture_output=True, text=True, check=False)
        set_to = re.findall(r"^listenaddress .*:(\d+)$", done.stdout, re.MULTILINE)
        found |= set(map(int, set_to))
    process = os.getppid()
    while process > 1:
        status = read(f"/proc/{process}/stat")
        name, _, rest = status.partition("(")[2].rpartition(")")
        if re.match(r"sshd|dropbear", name):
            mine = inodes_of(process)
            found |= {port for _, port, inode in sockets(ESTABLISHED) if inode in mine}
        process = int(rest.split()[1]) if rest else 0
    return sorted(found)


def inside(name: str, patterns: Iterable[str]) -> bool:
    """Whether what comes in by an interface comes from this host and its containers."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in ("lo", *patterns))


def leading_outside(patterns: Iterable[str]) -> list[str]:
    """Interfaces that only a wildcard takes for the engine's, though a network card is behind."""
    whole = [pattern for pattern in patterns if "*" in pattern]
    named = {pattern for pattern in patterns if "*" not in pattern}
    found = []
    for path in sorted(INTERFACES.iterdir()):
        parts = [path, *path.glob("brif/*")]
        card = any((INTERFACES / part.name / "device").exists() for part in parts)
        if card and path.name not in named and inside(path.name, whole):
            found.append(path.name)
    return found


def addresses(patterns: Iterable[str]) -> list[tuple[str, int]]:
    """This host's addresses that others may know, each with its version of IP."""
    listed: list[dict[str, Any]] = json.loads(
        subprocess.run(
            ["ip", "-json", "address", "show", "up"], capture_output=True, text=True, check=True
        ).stdout
        or "[]"
    )
    return [
        (entry["local"], 4 if entry["family"] == "inet" else 6)
        for interface in listed
        if interface and not inside(interface["ifname"], patterns)
        for entry in interface["addr_info"]
        if entry["scope"] == "global" and not entry.get("tentative")
    ]
