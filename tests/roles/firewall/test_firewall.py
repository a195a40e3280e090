"""The firewall on a machine with systemd and sshd, reached over SSH, and seen by a neighbour.

The tests of this file build on each other, in the order in which they stand.
"""

from __future__ import annotations

import concurrent.futures
import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import BIN, ROOT, Engine, Run, ansible_environment, playbook, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.docker, pytest.mark.slow]

NAME = "compose-stack-firewall"
HOST = Engine(("docker", "exec", NAME))
NEIGHBOUR = Engine(("docker", "exec", f"{NAME}-neighbour"))
SUBNET = "fd6c:7b1a:90d4:1::/64"
# What systemd, namespaces and SSH need; less than --privileged, which not every machine can grant.
MACHINE = (
    "--cap-add=ALL", "--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined",
    "--security-opt=systempaths=unconfined", "--security-opt=no-new-privileges=false",
    "--cgroupns=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw", "--tmpfs=/run", "--tmpfs=/tmp",
)  # fmt: skip
STRANGERS = ("-o StrictHostKeyChecking=no", "-o UserKnownHostsFile=/dev/null")
LISTEN = """
import selectors, socket, sys
ports = [int(port) for port in sys.argv[1:]]
waiting = selectors.DefaultSelector()
for port in ports:
    for family in (socket.AF_INET, socket.AF_INET6):
        waiting.register(socket.create_server(("", port), family=family), selectors.EVENT_READ)
while True:
    for key, _ in waiting.select():
        key.fileobj.accept()[0].close()
"""
ECHO = """
import socket, sys
server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
server.bind(("", int(sys.argv[1])))
while True:
    server.sendto(*server.recvfrom(100))
"""
ASK = """
import socket, sys
for host in sys.argv[2:]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        client.connect((host, int(sys.argv[1])))
        client.send(b"hello")
        try:
            print(client.recv(100) == b"hello")
        except OSError:
            print(False)
"""
SCAN = """
import concurrent.futures, json, socket, sys
def probe(target):
    try:
        socket.create_connection(target, 1).close()
    except OSError:
        return False
    return True
targets = [(host, int(port)) for host in sys.argv[1].split(",") for port in sys.argv[2].split(",")]
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    print(json.dumps([t for t, hit in zip(targets, pool.map(probe, targets)) if hit]))
"""
# A container as Docker makes one: behind a bridge, with two ports of the host translated to it.
CONTAINER = """
ip netns add box
ip link add br-0123456789ab type bridge
ip link set br-0123456789ab up
ip link add box0 type veth peer name eth0 netns box
ip link set box0 master br-0123456789ab up
ip addr add 172.31.77.1/24 dev br-0123456789ab
ip addr add fd6c:7b1a:90d4:2::1/64 dev br-0123456789ab nodad
ip -n box addr add 172.31.77.2/24 dev eth0
ip -n box addr add fd6c:7b1a:90d4:2::2/64 dev eth0 nodad
ip -n box link set eth0 up
ip -n box route add default via 172.31.77.1
ip -n box route add default via fd6c:7b1a:90d4:2::1
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
nft -f - <<'END'
table inet translation {
    chain prerouting {
        type nat hook prerouting priority dstnat;
        fib daddr type != local return
        tcp dport { 80, 8088 } dnat ip to 172.31.77.2:8080
        tcp dport { 80, 8088 } dnat ip6 to [fd6c:7b1a:90d4:2::2]:8080
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "eth0" masquerade
    }
}
END
"""
ON = {"firewall_enabled": True, "firewall_tcp_ports": [80, 443], "firewall_udp_ports": [5001]}
# Listened on by the host: 22 by sshd, 443 and 9999 by the test; 80 and 8088 lead to the container.
ASKED = (22, 80, 443, 8080, 8088, 9999)
TABLE = ("nft", "--stateless", "list", "table", "inet", "compose-stack")


def listener(engine: Engine, *ports: int, within: tuple[str, ...] = (), code: str = LISTEN) -> None:
    command = [*within, "python3", "-c", code, *map(str, ports)]
    subprocess.run(
        [*engine.prefix[:2], "--detach", *engine.prefix[2:], *command], check=True, timeout=20
    )


def image_of(name: str) -> str:
    return Engine().run("docker", "inspect", "--format={{.Config.Image}}", name).strip()


def addresses(name: str) -> list[str]:
    details = json.loads(Engine().run("docker", "inspect", name))[0]["NetworkSettings"]
    network = details["Networks"][NAME]
    return [network["IPAddress"], network["GlobalIPv6Address"]]


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    here = Engine()
    if not here.succeeds("docker", "info") or shutil.which("mmdebstrap") is None:
        pytest.skip("needs a Docker Engine and mmdebstrap")
    directory = tmp_path_factory.mktemp("inventory")
    image = subprocess.run(
        ["sh", str(ROOT / "files" / "images" / "containerhost" / "build.sh")],
        stdout=subprocess.PIPE, text=True, timeout=300, check=True,
    ).stdout.strip()  # fmt: skip
    key = directory / "key"
    here.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))

    def clean() -> None:
        names = (NAME, f"{NAME}-neighbour")
        here.run("docker", "rm", "--force", "--volumes", *names, check=False)
        here.run("docker", "network", "rm", NAME, check=False)

    clean()
    try:
        here.run("docker", "network", "create", "--ipv6", f"--subnet={SUBNET}", NAME)
        start = ("docker", "run", "--detach", f"--network={NAME}", "--name")
        here.run(*start, NAME, *MACHINE, image)
        here.run(*start, f"{NAME}-neighbour", image, "sleep", "infinity")
        wait_for(
            "the machine booted",
            lambda: (
                HOST.run("systemctl", "is-system-running", check=False).strip()
                in ("running", "degraded")
            ),
            60,
        )
        HOST.run(
            "sh", "-euc",
            "useradd --create-home --shell /bin/bash deploy\n"
            "install -d -m 0700 -o deploy -g deploy /home/deploy/.ssh\n"
            'printf "%s\\n" "$1" > /home/deploy/.ssh/authorized_keys\n'
            'echo "deploy ALL=(ALL) NOPASSWD: ALL" > /etc/sudoers.d/deploy\n'
            "apt-get -qq update && apt-get -qq install --yes --no-install-recommends nftables",
            "sh", key.with_suffix(".pub").read_text().strip(), seconds=200,
        )  # fmt: skip
        HOST.run("sh", "-euc", CONTAINER)
        listener(HOST, 443, 9999)
        listener(HOST, 8080, within=("ip", "netns", "exec", "box"))
        listener(NEIGHBOUR, 7000)
        listener(HOST, 5001, code=ECHO)
        listener(HOST, 5002, code=ECHO)
        path = directory / "hosts.json"
        variables = {
            "ansible_host": addresses(NAME)[0],
            "ansible_user": "deploy",
            "ansible_ssh_private_key_file": str(key),
            "ansible_ssh_common_args": " ".join(STRANGERS),
            "stack_project": "firewall-test",
            "stack_services": [],
            "preflight_disk_docker_mb": 1,
            "preflight_disk_images_mb": 1,
            "preflight_disk_stack_mb": 1,
            "preflight_memory_mb": 64,
        }
        path.write_text(json.dumps({"stack": {"hosts": {NAME: {}}, "vars": variables}}))
        yield path
    finally:
        clean()


def converge(inventory: Path, *options: str, **values: Any) -> Run:
    return playbook(
        inventory, *options, name="../tests/roles/firewall/play.yml", variables=values, seconds=120
    )


def seen(*ports: int) -> list[list[int]]:
    """What the neighbour finds open, by IPv4 and by IPv6."""
    hosts = addresses(NAME)
    asked = ",".join(map(str, ports or ASKED))
    found = json.loads(NEIGHBOUR.run("python3", "-c", SCAN, ",".join(hosts), asked))
    return [sorted(port for at, port in found if at == host) for host in hosts]


def reaches(*command: str, host: str, port: int) -> bool:
    code = f"import socket; socket.create_connection(({host!r}, {port}), 2)"
    return HOST.succeeds(*command, "python3", "-c", code)


def no_traces() -> bool:
    return "scan" not in HOST.run("ip", "-brief", "link")


def test_off_costs_nothing(inventory: Path) -> None:
    """BM-12: a host without a firewall is left alone, and all of it is open."""
    run = converge(inventory).succeeded()
    assert (run.changed, run.executions) == (0, 1)
    assert seen() == [list(ASKED[:3] + ASKED[4:])] * 2


def test_rehearsal_changes_nothing(inventory: Path) -> None:
    """BM-12: --check --diff shows the rules, with the port of SSH that was found."""
    run = converge(inventory, "--check", "--diff", **ON).succeeded()
    assert run.changed == 1
    for port in (22, 80, 443):
        assert f"+        meta l4proto tcp ct original proto-dst {port} accept" in run.output
    assert not HOST.succeeds(*TABLE)
    assert not HOST.succeeds("ls", "/etc/compose-stack")


def test_bad_host(inventory: Path) -> None:
    """BM-12: no right to manage the network, no port of SSH; said before anything changes."""
    NEIGHBOUR.run("mv", "/usr/sbin/sshd", "/usr/sbin/sshd.away")
    run = converge(
        inventory,
        **{**ON, "ansible_connection": "community.docker.docker", "ansible_user": "root"},
        ansible_host=f"{NAME}-neighbour",
    ).failed()
    assert "root may not manage this host's network" in run.output
    assert "what port SSH has cannot be found out" in run.output
    assert run.changed == 0


def test_only_what_may_be_is_open(inventory: Path) -> None:
    """BM-12: for IPv4 and IPv6, on the host and behind a published port."""
    assert converge(inventory, **ON).succeeded().changed == 1
    assert seen() == [[22, 80, 443]] * 2
    for port, answers in ((5001, "True"), (5002, "False")):
        asked = NEIGHBOUR.run("python3", "-c", ASK, str(port), *addresses(NAME))
        assert asked.split() == [answers] * 2, port
    assert HOST.run("systemctl", "is-enabled", "compose-stack-firewall").strip() == "enabled"
    assert no_traces()


def test_what_worked_inside_works(inventory: Path) -> None:
    """BM-12: containers reach the world and the host, and others the host by ping."""
    there = addresses(f"{NAME}-neighbour")[0]
    box = ("ip", "netns", "exec", "box")
    assert reaches(*box, host=there, port=7000)
    assert reaches(*box, host="172.31.77.1", port=9999)
    assert reaches(host=there, port=7000)
    assert reaches(host="127.0.0.1", port=9999)


def test_containers_are_reached_by_published_ports_alone(inventory: Path) -> None:
    """BM-12: not by who knows their addresses and has a route."""
    for version, (subnet, via) in enumerate(
        zip(("172.31.77.0/24", "fd6c:7b1a:90d4:2::/64"), addresses(NAME), strict=True)
    ):
        way = ("ip", f"-{(4, 6)[version]}", "route", "add", subnet, "via", via)
        Engine().run(
            *("docker", "run", "--rm", "--cap-add=NET_ADMIN"),
            *(f"--network=container:{NAME}-neighbour", image_of(NAME), *way),
        )
    for host in ("172.31.77.2", "fd6c:7b1a:90d4:2::2"):
        found = NEIGHBOUR.run("python3", "-c", SCAN, host, "8080")
        assert json.loads(found) == [], host


def test_nothing_to_do(inventory: Path) -> None:
    """BM-12: one execution to load, one to scan, beside preflight's."""
    run = converge(inventory, **ON).succeeded()
    assert (run.changed, run.executions) == (0, 3)
    assert converge(inventory, "--check", "--diff", **ON).succeeded().changed == 0


def test_a_scan_that_is_killed_leaves_nothing(inventory: Path) -> None:
    """BM-12: no interface, and so no namespace and no process either, which would keep it."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        run = pool.submit(converge, inventory, **ON)
        # The interface is called after the process.
        process = wait_for(
            "the scan", lambda: re.search(r"scan(\d+)", HOST.run("ip", "-brief", "link")), 60, 0.1
        ).group(1)
        HOST.run("kill", "-KILL", process)
        run.result().failed()
    wait_for("all of it gone", no_traces, 5)


def test_rules_that_close_ssh_are_taken_back(inventory: Path) -> None:
    """BM-12: by the host itself, whatever becomes of the run; and the run says what to do."""
    before = HOST.run(*TABLE), HOST.run("cat", "/etc/compose-stack/firewall.nft")
    run = converge(inventory, **ON, firewall_ssh_ports=[2222], firewall_trial_seconds=6).failed()
    assert "no new connection came through within 6 s" in run.output
    assert "put the rules back that were in force before" in run.output
    assert "leave firewall_ssh_ports empty" in run.output
    assert (HOST.run(*TABLE), HOST.run("cat", "/etc/compose-stack/firewall.nft")) == before
    assert seen() == [[22, 80, 443]] * 2


def test_a_run_that_is_killed_locks_nobody_out(inventory: Path, tmp_path: Path) -> None:
    """BM-12: when new rules are in force and nobody is there to confirm them."""
    before = HOST.run(*TABLE)
    rules = HOST.run("cat", "/etc/compose-stack/firewall.nft").replace("dst 22 ", "dst 2222 ")
    arguments = {"project": "firewall-test", "rules": rules, "trial_seconds": 10}
    done = subprocess.run(
        [
            *(str(BIN / "ansible"), "stack", f"--inventory={inventory}", "--become"),
            *("--module-name=firewall", f"--args={json.dumps(arguments)}"),
        ],
        cwd=ROOT,
        # The module alone: what confirms is the action plugin.
        env={**ansible_environment(tmp_path / "record"), "ANSIBLE_ACTION_PLUGINS": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "trial: " in done.stdout
    assert seen() == [[80, 443]] * 2
    wait_for("the old rules", lambda: HOST.run(*TABLE) == before, 20)
    assert seen() == [[22, 80, 443]] * 2


def test_a_difference_fails_the_run(inventory: Path) -> None:
    """BM-12: what is open and may not be is named with who listens; and what is closed in vain."""
    rule = "nft insert rule inet compose-stack outside tcp dport"
    meddle = ["sh", "-euc", f"{rule} 9999 accept; {rule} 443 drop"]
    run = converge(inventory, **ON, meddle=meddle).failed()
    text = " ".join(run.output.split())
    for host in addresses(NAME):
        assert re.search(
            rf"Port 9999 of {host} is open and may not be; python3 \(PID \d+: python3 -c ", text
        ), run.output
        assert f"Port 443 of {host} may be open, and something listens, but nobody gets" in text
    assert "add 9999 to firewall_tcp_ports" in text
    assert no_traces()


def test_tampering_is_mended(inventory: Path) -> None:
    """BM-12: rules that somebody has slipped in are shown by a check, and gone after a run."""
    assert 9999 in seen()[0]
    check = converge(inventory, "--check", "--diff", **ON).succeeded()
    assert check.changed == 1
    assert "-\t\ttcp dport 9999 accept" in check.output
    assert converge(inventory, **ON).succeeded().changed == 1
    assert seen() == [[22, 80, 443]] * 2


@pytest.mark.parametrize("verbs", [["restart"], ["reload"], ["stop", "start"]], ids="-".join)
def test_outlives_nftables(inventory: Path, verbs: list[str]) -> None:
    """BM-12: whose service flushes every table."""
    before = HOST.run(*TABLE)
    for verb in verbs:
        HOST.run("systemctl", verb, "nftables")
    # systemctl waits for the unit that it was given, not for those that come with it.
    wait_for("the same table", lambda: HOST.run(*TABLE, check=False) == before, 5)


def test_outlives_a_boot(inventory: Path) -> None:
    """BM-12: in force before the network is up."""
    before = HOST.run(*TABLE)
    Engine().run("docker", "restart", NAME)
    wait_for("the table", lambda: HOST.succeeds(*TABLE), 60)
    assert HOST.run(*TABLE) == before
    listener(HOST, 9999)
    wait_for("SSH", lambda: seen(22) == [[22]] * 2, 60)
    assert seen(22, 9999) == [[22]] * 2


def test_off_takes_it_away(inventory: Path) -> None:
    """BM-12: rules, unit and file."""
    assert converge(inventory, "--check").succeeded().changed == 1
    assert HOST.succeeds(*TABLE)
    assert converge(inventory).succeeded().changed == 1
    assert not HOST.succeeds(*TABLE)
    assert not HOST.succeeds("ls", "/etc/compose-stack")
    assert "compose-stack" not in HOST.run("systemctl", "list-unit-files")
