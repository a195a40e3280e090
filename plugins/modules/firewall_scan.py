#!/usr/bin/python
"""Ansible module: see what of a host a stranger finds open, and compare it with what may be."""

from __future__ import annotations

DOCUMENTATION = r"""
module: firewall_scan
short_description: See what of a host a stranger finds open, and compare it with what may be
version_added: "1.0.0"
author: compose-stack
description:
  - Connects to every TCP port of each of the host's addresses, IPv4 and IPv6, from a network
    namespace of its own, which a pair of virtual interfaces joins to the host. To the host's rules
    that is a stranger on the network. Where the host has no address of one version, the end of the
    pair on the host's side stands in for it.
  - Fails when a port is open that may not be, or when one is closed that is to be reached; and says
    who listens.
  - The namespace goes with the process that scans, and the pair with the namespace, however the
    module ends.
options:
  allowed:
    description: TCP ports that may be open.
    type: list
    elements: int
    required: true
  published:
    description: What has to be open; each a C(port) and the C(address) of the host that it
      is published on.
    type: list
    elements: dict
    default: []
  inside:
    description: Names of interfaces behind which the host's own containers are; C(*) at the end.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    description: Does nothing, as it would make interfaces.
    support: none
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: See that nothing else is open
  firewall_scan:
    allowed: [22, 80, 443]
    inside: [docker*, br-*]
"""

RETURN = r"""
open:
  description: The open ports by address.
  type: dict
  returned: always
seconds:
  description: How long the scan took.
  type: float
  returned: always
"""

import contextlib
import ctypes
import errno
import ipaddress
import json
import os
import re
import resource
import secrets
import select
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.docker_host import Engine, EngineError
from ansible.module_utils.firewall import addresses
from ansible.module_utils.listeners import (
    LISTEN,
    container_publishing,
    listening_inodes,
    owner,
    sockets,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

PORTS = range(1, 65536)
AT_ONCE = 2048
# One more try of the kernel's, a second after the first, falls into it.
PATIENCE_SECONDS = 1.5
# All of it; what is dropped instead of refused takes longest.
LIMIT_SECONDS = 600
NEW_NETWORK = 0x40000000  # CLONE_NEWNET
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
# For documentation: no host on a network of anybody's has one of these.
DOCUMENTATION_NETWORKS = ("203.0.113.248/30", "198.51.100.248/30", "192.0.2.248/30")
ANY_ADDRESS = {4: "0.0.0.0", 6: "::"}  # noqa: S104  compared with, not bound
PREFIX = {4: 30, 6: 64}


Target = tuple[str, int]


class ScanError(Exception):
    """The scan could not be made."""


class Scan:
    """Connects to many targets at a time; what is refused at once costs least."""

    def __init__(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = AT_ONCE + 64 if hard == resource.RLIM_INFINITY else min(AT_ONCE + 64, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(room, soft), hard))
        self.room = room - 64
        self.found: set[Target] = set()
        self.silent: list[Target] = []
        # In the order in which they were begun, so that the first is the one to give up next.
        self.begun: dict[int, tuple[socket.socket, Target, float]] = {}
        self.poll = select.epoll()
        # A socket that was refused can be used again.
        self.spare: dict[socket.AddressFamily, socket.socket] = {}

    def run(self, targets: Iterable[Target]) -> set[Target]:
        """Which of the targets take a connection."""
        for target in targets:
            self.begin(target)
            while len(self.begun) >= self.room:
                self.wait()
        while self.begun:
            self.wait()
        return self.found

    def begin(self, target: Target) -> None:
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        attempt = self.spare.pop(family, None) or socket.socket(family, kind)
        code = attempt.connect_ex(target)
        if code == errno.EINPROGRESS:
            # On the same machine the answer has mostly come by now, which saves to wait for it.
            code = attempt.connect_ex(target)
        if code in (errno.EINPROGRESS, errno.EALREADY):
            self.poll.register(attempt, select.EPOLLOUT)
            self.begun[attempt.fileno()] = (attempt, target, time.monotonic() + PATIENCE_SECONDS)
        elif code == errno.ECONNREFUSED:
            self.spare[family] = attempt
        else:
            self.end(attempt, target, code)

    def wait(self) -> None:
        """Take the answers that come, and give up those that do not."""
        for number, _ in self.poll.poll(0.05):
            attempt, target, _ = self.begun.pop(number)
            self.end(attempt, target, attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        while self.begun:
            attempt, target, until = next(iter(self.begun.values()))
            if until > time.monotonic():
                break
            del self.begun[attempt.fileno()]
            self.silent.append(target)
            attempt.close()

    def end(self, attempt: socket.socket, target: Target, code: int) -> None:
        if code in (0, errno.EISCONN):
            self.found.add(target)
            # With a reset, so that nothing lingers.
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        attempt.close()


def scan(targets: Iterable[Target]) -> set[Target]:
    """Which of the targets take a connection. Those that did not answer are asked once more."""
    first = Scan()
    return first.run(targets) | Scan().run(first.silent)


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ScanError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def give(address: str, version: int, link: str) -> None:
    """Put an address onto an interface, usable at once."""
    at_once = ("nodad",) if version == 6 else ()
    ip("address", "add", f"{address}/{PREFIX[version]}", "dev", link, *at_once)


def knows_ipv6() -> bool:
    """Whether a new interface of this host gets addresses of IPv6."""
    path = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    return path.exists() and path.read_text(encoding="ascii").strip() == "0"


def pairs() -> dict[int, tuple[str, str]]:
    """The addresses of this host's end and of the stranger's, by version of IP."""
    done = subprocess.run(
        ["ip", "-4", "route", "show", "table", "all"], capture_output=True, text=True, check=False
    )
    # Each line names a network or an address first, or after its kind.
    names = re.findall(r"^(?:[a-z]+ )?([0-9][0-9./]*) ", done.stdout, re.MULTILINE)
    taken = [network for name in names if (network := ipaddress.IPv4Network(name)).prefixlen]
    free = [
        network
        for network in map(ipaddress.IPv4Network, DOCUMENTATION_NETWORKS)
        if not any(network.overlaps(other) for other in taken)
    ]
    if not free:
        raise ScanError(
            f"The host has routes to all of {', '.join(DOCUMENTATION_NETWORKS)}, which are for "
            "documentation and nobody's."
        )
    found = {4: (str(free[0][1]), str(free[0][2]))}
    if knows_ipv6():
        # 40 random bits: a local network that is nobody's.
        local = ipaddress.IPv6Network((int(f"fd{secrets.token_hex(5)}", 16) << 80, 64))
        found[6] = (str(local[1]), str(local[2]))
    return found


class Stranger:
    """A process in a network of its own, whose only way leads to the host."""

    def __init__(self) -> None:
        self.link = f"scan{os.getpid()}"
        self.ends = pairs()
        self.process = 0

    def scan(self, hosts: list[str], ports: Iterable[int]) -> set[Target]:
        """What is open to it."""
        targets = [(host, port) for host in hosts for port in ports]
        ready, begin_now, result = os.pipe(), os.pipe(), os.pipe()
        self.process = os.fork()
        if self.process == 0:
            self._live(ready[1], begin_now[0], result[1], targets)
        try:
            for end in (ready[1], begin_now[0], result[1]):
                os.close(end)
            said = os.read(ready[0], 1000).decode()
            if said != "ready":
                raise ScanError(f"no network namespace can be made: {said or 'no reason given'}")
            self._join()
            os.write(begin_now[1], b"go")
            with os.fdopen(result[0], "rb", closefd=False) as stream:
                answer = json.loads(stream.read() or b'{"error": "it was killed"}')
            if "error" in answer:
                raise ScanError(f"the scan ended: {answer['error']}")
            return {(host, port) for host, port in answer["open"]}
        finally:
            for end in (ready[0], begin_now[1], result[0]):
                os.close(end)
            self.end()

    def end(self) -> None:
        """The namespace goes with its last process; the pair at once, for whoever looks."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
            self.process = 0
        subprocess.run(["ip", "link", "delete", self.link], capture_output=True, check=False)

    def _join(self) -> None:
        """Lay the pair."""
        peer = ("peer", "name", "outside", "netns", str(self.process))
        ip("link", "add", self.link, "type", "veth", *peer)
        for version, (here, _) in self.ends.items():
            give(here, version, self.link)
        ip("link", "set", self.link, "up")

    def _live(self, ready: int, begin_now: int, result: int, targets: list[Target]) -> None:
        """What the child does. It never returns."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(DEATH_SIGNAL, signal.SIGKILL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT_SECONDS)
        if libc.unshare(NEW_NETWORK):
            os.write(ready, os.strerror(ctypes.get_errno()).encode())
            os._exit(1)
        os.write(ready, b"ready")
        if not os.read(begin_now, 2):
            os._exit(1)
        try:
            ip("link", "set", "lo", "up")
            ip("link", "set", "outside", "up")
            for version, (here, there) in self.ends.items():
                give(there, version, "outside")
                ip(f"-{version}", "route", "add", "default", "via", here)
            answer: dict[str, Any] = {"open": sorted(scan(targets))}
        except (OSError, ScanError) as error:
            answer = {"error": str(error)}
        with os.fdopen(result, "wb") as stream:
            stream.write(json.dumps(answer).encode())
        os._exit(0)


def listening() -> set[Target]:
    return {(address, port) for address, port, _ in sockets(LISTEN)}


def awaited(hosts: dict[str, int], allowed: set[int], published: Iterable[Target]) -> set[Target]:
    """What must be open: what may be and is published or listened on, by address."""
    offered = {*published, *listening()}
    return {
        (host, port)
        for host, version in hosts.items()
        for address, port in offered
        if port in allowed and address in {host, ANY_ADDRESS[version]}
    }


def main() -> None:
    """Entry point of Ansible."""
    module = AnsibleModule(
        argument_spec={
            "allowed": {"type": "list", "elements": "int", "required": True},
            "published": {"type": "list", "elements": "dict", "default": []},
            "inside": {"type": "list", "elements": "str", "required": True},
        },
    )
    params = module.params
    allowed = set(params["allowed"])
    published = [(item["address"], item["port"]) for item in params["published"]]
    began = time.monotonic()
    try:
        stranger = Stranger()
        hosts = dict(addresses(params["inside"]))
        for version, (here, _) in stranger.ends.items():
            if version not in hosts.values():
                hosts[here] = version
        found = stranger.scan(sorted(hosts), PORTS)
        missing = awaited(hosts, allowed, published) - found
        if missing:
            # Asked again: a busy host may have been slow.
            found |= Stranger().scan(sorted({host for host, _ in missing}), {p for _, p in missing})
    except ScanError as error:
        module.fail_json(
            msg=f"What is open to others could not be looked at: {error}\nRemedy: let the user "
            "that Ansible becomes make network namespaces (root; in a container, CAP_NET_ADMIN and "
            "CAP_SYS_ADMIN), or set firewall_enabled to false."
        )
    seen = {host: sorted(port for at, port in found if at == host) for host in sorted(hosts)}
    result = {"changed": False, "open": seen, "seconds": round(time.monotonic() - began, 1)}
    problems = [
        *unexpected({item for item in found if item[1] not in allowed}),
        *unreachable(missing - found),
    ]
    if problems:
        listed = "\n".join(f"- {text}" for text in problems)
        module.fail_json(
            msg=f"What a stranger finds open differs from what may be:\n{listed}\nRemedy: see "
            "docs/runbooks/firewall.md, or the remedies named above; then run this again.",
            **result,
        )
    module.exit_json(**result)


def unexpected(found: set[Target]) -> list[str]:
    if not found:
        return []
    containers: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, EngineError, ValueError):
        containers = Engine().get("/containers/json") or []
    texts = []
    for host, port in sorted(found):
        if container_publishing(containers, host, port) or listening_inodes(host, port):
            who, stop = owner(containers, host, port)
            text = f"{who} listens. {stop[0].upper()}{stop[1:]}"
        else:
            text = (
                "no program of this host listens, so a rule of somebody else's leads to where one "
                "does. Find it (nft list ruleset) and take it away"
            )
        texts.append(
            f"Port {port} of {host} is open and may not be; {text}; or, if it is to be reached, "
            f"add {port} to firewall_tcp_ports."
        )
    return texts


def unreachable(missing: set[Target]) -> list[str]:
    return [
        f"Port {port} of {host} may be open, and something listens, but nobody gets through: "
        "another firewall (nft list ruleset; ufw status) or another rule is in the way."
        for host, port in sorted(missing)
    ]


if __name__ == "__main__":
    main()
