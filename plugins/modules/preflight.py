#!/usr/bin/python
"""Ansible module: look a host over before anything on it is changed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Look a host over before anything on it is changed
description:
  - Gathers, in one execution, every problem that would stop a deployment, and the facts its roles
    need, so that they need no probes of their own.
  - Changes nothing, and needs neither Docker nor root, though root lets it see more.
  - Called through the action plugin of the same name, which checks variables first and turns the
    problems of both into one message.
options:
  stack_dir:
    description: Directory the stack is rendered to.
    type: str
    default: ''
  stack_project:
    description: Compose project name.
    type: str
    default: ''
  stack_entries:
    description: Names that a directory of ours may hold; any one of them marks it as ours.
    type: list
    elements: str
    default: []
  unfinished:
    description:
      - A file that is there as long as a recovery of the host has not ended. Only a recovery may go
        on then, and leaves this empty, unless the file says C(starting).
    type: str
    default: ''
  ports:
    description: Ports that are going to be published.
    type: list
    elements: dict
    default: []
    suboptions:
      variable:
        description: Variable that sets the port, to name it in the message.
        type: str
        required: true
      port:
        description: TCP port.
        type: int
        required: true
      address:
        description: Address of the host to publish on.
        type: str
        default: 0.0.0.0
  postgres_major:
    description: Major version of the PostgreSQL that is going to run; 0 skips the check.
    type: int
    default: 0
  postgres_data_dir:
    description: Directory of the database, when it is not a volume.
    type: str
    default: ''
  postgres_volume:
    description: Volume of the database.
    type: str
    default: ''
  distributions:
    description: Supported distributions, as C(id-version) of os-release.
    type: list
    elements: str
    default: []
  architectures:
    description: Supported machine names as of C(uname -m).
    type: list
    elements: str
    default: []
  python_min:
    description: Lowest Python version on the host.
    type: str
    default: ''
  engine_min:
    description: Lowest Docker Engine version.
    type: str
    default: ''
  compose_min:
    description: Lowest Compose plugin version.
    type: str
    default: ''
  memory_mb:
    description: Memory the host must have, in MiB.
    type: int
    default: 0
  disk_stack_mb:
    description: Space that must be free for O(stack_dir), in MiB.
    type: int
    default: 0
  disk_docker_mb:
    description: Space that must be free for Docker's data, in MiB.
    type: int
    default: 0
  disk_images_mb:
    description: Further space for Docker's data as long as none of O(images) is there, in MiB.
    type: int
    default: 0
  images:
    description: Repositories of images of which any one shows that the images were made before.
    type: list
    elements: str
    default: []
  measurements_mb:
    description: Size to which measurements may grow, in MiB; 0 skips the check.
    type: int
    default: 0
  measurements_dir:
    description: Directory of the measurements; empty means Docker's data.
    type: str
    default: ''
  clock_skew_seconds:
    description: Difference allowed between the clocks of the controller and the host.
    type: int
    default: 300
  controller_time:
    description: The controller's clock, in seconds since 1970; 0 skips the check.
    type: float
    default: 0
  daemon_options:
    description: What daemon.json must hold; a value of null stands for a key that must be absent.
    type: dict
    default: {}
  packages:
    description:
      - Packages other roles need, with what shows that one is not missing.
        RV(facts.packages_missing) lists the others.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Package.
        type: str
        required: true
      command:
        description: Program on PATH.
        type: str
      python:
        description: Module that this Python finds.
        type: str
      path:
        description: File that exists.
        type: str
  sockets:
    description: Where the application's slots listen; RV(facts.sockets) says how that is, and
      what secrets each slot's live definition refers to.
    type: dict
    suboptions:
      path:
        description: Directory that holds the slots.
        type: path
        required: true
      slots:
        description: Names of the slots.
        type: list
        elements: str
        required: true
      owner:
        description: User id that the slots' processes run as.
        type: int
        required: true
      group:
        description: Group id that may connect.
        type: int
        required: true
  certificate:
    description:
      - What M(certificate_pair) would be given to judge the self-signed certificate;
        RV(facts.certificate) says whether it would have anything to do.
    type: dict
    suboptions:
      path:
        description: Directory of the certificate and the authority.
        type: path
        required: true
      names:
        description: Names that it must be for.
        type: list
        elements: str
        required: true
      owner:
        description: User id that may read the private key.
        type: int
        required: true
      renew_days:
        description: It is due when fewer days are left.
        type: int
        required: true
      authority:
        description: Whether the local authority must have signed it.
        type: bool
        required: true
      renew:
        description: Whether it is due in any case.
        type: bool
        required: true
  volumes:
    description: Volumes that must exist; RV(facts.volumes) are those that do.
    type: list
    elements: str
    default: []
  directories:
    description: Directories that must exist; RV(facts.directories) are those that are in order.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The directory.
        type: str
        required: true
      user:
        description: Numeric user and group id, C(uid:gid).
        type: str
        required: true
      mode:
        description: Mode, as an octal string.
        type: str
        required: true
  marks:
    description: Small files that earlier runs have left, by a name of their own; RV(facts.marks)
      has the first line of each, or nothing.
    type: dict
    default: {}
  secrets:
    description:
      - The secrets that must exist; RV(facts.secrets) says whether M(secret_files) would have
        anything to do, and if not, what it would return.
    type: dict
    suboptions:
      path:
        description: The directory.
        type: path
        required: true
      names:
        description: Secrets that must exist.
        type: list
        elements: str
        required: true
      known:
        description: Others that may have a value.
        type: list
        elements: str
        required: true
      digests:
        description: The SHA-256 of each value that takes a generated one's place, by name.
        type: dict
        required: true
  firewall:
    description:
      - The firewall that is wanted. RV(facts.firewall) says whether this stack's is there, and
        what ports SSH has.
    type: dict
    suboptions:
      enabled:
        description: Whether one is wanted.
        type: bool
        required: true
      project:
        description: The stack that it is for.
        type: str
        required: true
      inside:
        description: Interfaces that nothing from outside comes in by; C(*) at the end.
        type: list
        elements: str
        required: true
  become_error:
    description: Why becoming root failed, when it did.
    type: str
    default: ''
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: Look the host over
  preflight:
"""

RETURN = r"""
problems:
  description: What is in the way, each with C(cause) and C(remedy).
  type: list
  elements: dict
  returned: always
facts:
  description: What the host is like.
  type: dict
  returned: always
"""

import contextlib
import errno
import importlib.util
import json
import os
import platform
import pwd
import re
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

from ansible.module_utils import firewall
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.docker_host import (
    DAEMON_JSON,
    DATA_ROOT,
    SOCKET,
    Engine,
    EngineError,
    docker_facts,
    merge_daemon_options,
    version_tuple,
)
from ansible.module_utils.listeners import (
    container_publishing,
    listening_inodes,
    owner,
    read,
)
from ansible.module_utils.secret_store import RefusedError, in_order
from ansible.module_utils.slots import Directory, active, directories
from ansible.module_utils.trees import TreeError, live_digests

DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
SYSTEM_DIRECTORIES = re.compile(
    r"/(bin|boot|dev|etc|home|lib|media|mnt|opt|proc|root|run|sbin|srv|sys|tmp|usr|var)?"
    r"|/usr/local|/var/(lib|tmp)"
)
# Of a file system that measurements may take: the databases live there too, unless told otherwise.
MEASUREMENTS_SHARE = 0.5
PROJECT_LABEL = "com.docker.compose.project"


class Preflight:
    """Collects problems and facts."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.problems: list[dict[str, str]] = []
        self.facts: dict[str, Any] = {"volumes": []}
        self.containers: list[dict[str, Any]] = []
        self.volume_path = ""
        self.image_present = False
        self.root = os.geteuid() == 0

    def problem(self, cause: str, remedy: str) -> None:
        self.problems.append({"cause": cause, "remedy": remedy})

    def run(self) -> None:
        self.check_system()
        self.check_privileges()
        self.check_clock()
        self.check_docker()
        self.check_project()
        self.check_ports()
        self.check_disk()
        self.check_measurements()
        self.check_postgres()
        self.check_firewall()
        self.find_packages()
        self.find_sockets()
        self.find_certificate()
        self.find_directories()
        self.find_trees()
        self.find_secrets()
        self.facts["marks"] = {
            name: read(path).partition("\n")[0] for name, path in self.params["marks"].items()
        }

    # The host itself

    def check_system(self) -> None:
        release = os_release()
        machine = platform.machine()
        status = dict(re.findall(r"^(\w+):\s+(\d+)", read("/proc/meminfo"), re.MULTILINE))
        memory_mb = int(status.get("MemTotal", 0)) // 1024
        self.facts.update(
            distribution=release.get("ID", ""),
            distribution_version=release.get("VERSION_ID", ""),
            codename=release.get("VERSION_CODENAME", ""),
            distribution_name=release.get("PRETTY_NAME", ""),
            architecture=machine,
            debian_architecture=DEBIAN_ARCHITECTURES.get(machine, machine),
            memory_mb=memory_mb,
            python={"version": platform.python_version(), "executable": sys.executable},
            service_manager="systemd" if Path("/run/systemd/system").is_dir() else "none",
            time=int(time.time()),
        )
        name = "{distribution}-{distribution_version}".format(**self.facts).rstrip("-")
        supported = self.params["distributions"]
        if supported and name not in supported:
            self.problem(
                f"The host runs {release.get('PRETTY_NAME', name)}, which is not supported.",
                f"Use one of {', '.join(supported)}; or, at your own risk and with Docker Engine "
                f"and Compose already installed, add '{name}' to preflight_distributions.",
            )
        architectures = self.params["architectures"]
        if architectures and machine not in architectures:
            self.problem(
                f"The host's architecture is {machine}.", f"Use {' or '.join(architectures)}."
            )
        minimum = self.params["python_min"]
        if sys.version_info[:2] < version_tuple(minimum)[:2]:
            self.problem(
                f"Ansible uses Python {platform.python_version()} ({sys.executable}) on the host.",
                f"Point ansible_python_interpreter at Python {minimum} or newer.",
            )
        if memory_mb < self.params["memory_mb"]:
            self.problem(
                f"The host has {memory_mb} MiB of memory, {self.params['memory_mb']} are needed.",
                "Give it more memory; or lower preflight_memory_mb together with the services' "
                "*_memory_mb.",
            )

    def check_privileges(self) -> None:
        user = pwd.getpwuid(os.geteuid()).pw_name
        self.facts.update(user=user, root=self.root)
        if self.root:
            return
        error = self.params["become_error"].strip()
        if shutil.which("sudo") is None:
            cause = f"User '{user}' is not root, and there is no sudo on the host."
            remedy = (
                "Connect as root (ansible_user: root), or install sudo and let the user use it."
            )
        else:
            cause = f"User '{user}' cannot become root" + (f": {error}" if error else ".")
            remedy = (
                "Give the password with --ask-become-pass (-K) or ansible_become_password; or "
                f"allow it without one (echo '{user} ALL=(ALL) NOPASSWD: ALL' > "
                f"/etc/sudoers.d/{user}); or connect as root."
            )
        self.problem(cause, remedy)

    def check_clock(self) -> None:
        reference = self.params["controller_time"]
        if not reference:
            return
        skew = time.time() - reference
        if abs(skew) > self.params["clock_skew_seconds"]:
            self.problem(
                f"The host's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the "
                "controller's: certificates would look expired or not valid yet.",
                "Set the clock and keep it right: apt-get install systemd-timesyncd, then "
                "timedatectl set-ntp true.",
            )

    # Docker

    def check_docker(self) -> None:
        self.check_address()
        docker = docker_facts()
        self.facts["docker"] = docker
        merged = merge_daemon_options(docker["daemon_options"] or {}, self.params["daemon_options"])
        docker["daemon_options_current"] = not docker["daemon_options_error"] and merged == (
            docker["daemon_options"] or {}
        )
        if docker["daemon_options_error"]:
            self.problem(
                f"{DAEMON_JSON} cannot be used: {docker['daemon_options_error']}.",
                f"Repair it (dockerd --validate --config-file {DAEMON_JSON} names the place), or "
                "move it away.",
            )
        if docker["state"] == "unreachable" and (self.root or "permission" not in docker["reason"]):
            self.problem(
                f"Docker is installed but cannot be used: {docker['reason']}.",
                "Look at its log (journalctl -u docker -n 50, or /var/log/dockerd.log) and restart "
                "it (systemctl restart docker); its data is kept.",
            )
        self.check_version("Docker Engine", docker["version"], "engine_min")
        self.check_version("Compose", docker["compose_version"], "compose_min")
        docker["ready"] = bool(
            docker["state"] == "running"
            and docker["client"]
            and docker["compose_version"]
            and docker["buildx_version"]
        )
        self.image_present = any(
            re.sub(r"(:[^/:]+)?(@.*)?$", "", name) in self.params["images"]
            for name in docker["images"]
        )
        if docker["state"] != "running":
            return
        engine = Engine()
        try:
            self.containers = engine.get("/containers/json", all="true") or []
            found = (engine.get("/volumes") or {}).get("Volumes") or []
            places = {volume["Name"]: volume["Mountpoint"] for volume in found}
            self.volume_path = places.get(self.params["postgres_volume"], "")
            self.facts["volumes"] = [name for name in self.params["volumes"] if name in places]
        except (OSError, EngineError, ValueError) as error:
            self.problem(f"Docker does not answer properly: {error}.", "Look at its log.")

    def check_address(self) -> None:
        address = os.environ.get("DOCKER_HOST", "")
        if address and os.path.realpath(address.removeprefix("unix://")) != os.path.realpath(
            SOCKET
        ):
            self.problem(
                f"DOCKER_HOST is '{address}', so docker would not ask this host's own engine, "
                f"which listens on {SOCKET}.",
                "Unset it for the user that Ansible connects as; or in your shell, when the host "
                "is this machine (unset DOCKER_HOST).",
            )

    def check_version(self, what: str, version: str, minimum: str) -> None:
        needed = self.params[minimum]
        if version and version_tuple(version) < version_tuple(needed):
            self.problem(
                f"{what} {version} is too old, {needed} or newer is needed.",
                "Upgrade it; or remove it (apt-get remove docker.io docker-compose, or what it was "
                "installed from; images and volumes stay) and this play installs a good one.",
            )

    def check_project(self) -> None:
        stack_dir, project = self.params["stack_dir"], self.params["stack_project"]
        if not stack_dir:
            return
        if not stack_dir.startswith("/") or SYSTEM_DIRECTORIES.fullmatch(
            os.path.normpath(stack_dir)
        ):
            self.problem(
                f"stack_dir is '{stack_dir}'.",
                "Set it to an absolute path of its own, such as /opt/compose-stack.",
            )
            return
        path = Path(stack_dir)
        try:
            entries = sorted(p.name for p in path.iterdir()) if path.exists() else []
        except NotADirectoryError:
            self.problem(f"{path} is not a directory.", "Move it away, or set another stack_dir.")
            entries = []
        except OSError:
            entries = []
        if entries and not set(entries) & set(self.params["stack_entries"]):
            self.problem(
                f"{path} exists and holds something else ({', '.join(entries[:3])}"
                f"{', ...' if len(entries) > 3 else ''}).",
                "Move that away, or set another stack_dir.",
            )
        unfinished = self.params["unfinished"]
        if unfinished and read(unfinished).strip() not in ("", "starting"):
            self.problem(
                f"A recovery of {project} on this host has not ended.",
                "`make recover` goes on with it; `make clean` removes what it has brought.",
            )
        elsewhere = {
            directory
            for container in self.project_containers()
            if (directory := container["Labels"].get(f"{PROJECT_LABEL}.working_dir"))
            and os.path.realpath(directory) != os.path.realpath(stack_dir)
        }
        if elsewhere:
            self.problem(
                f"Another compose project named '{project}' has containers on this host, from "
                f"{', '.join(sorted(elsewhere))}.",
                "Set another stack_project; or, if it is an old one of yours, remove its "
                f"containers (volumes stay): docker compose -p {project} down.",
            )

    def project_containers(self) -> list[dict[str, Any]]:
        project = self.params["stack_project"]
        return [c for c in self.containers if (c.get("Labels") or {}).get(PROJECT_LABEL) == project]

    # Ports

    def check_ports(self) -> None:
        ours = {
            published["PublicPort"]
            for container in self.project_containers()
            for published in container.get("Ports") or []
            if "PublicPort" in published
        }
        for entry in self.params["ports"]:
            # What cannot be a port at all is reported as a wrong value.
            if entry["port"] not in ours and 0 < entry["port"] < 65536:
                self.check_port(entry)

    def check_port(self, entry: dict[str, Any]) -> None:
        variable, port, address = entry["variable"], entry["port"], entry["address"]
        container = container_publishing(self.containers, address, port)
        if container:
            self.port_taken(entry, f"the container {container}", "stop that container")
            return
        try:
            reachable = bind(address, port)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                self.problem(
                    f"{address} is not an address of the host, so {variable} ({port}) cannot be "
                    "published on it.",
                    "Set the publish address to one of the host's own (ip -brief address), "
                    "127.0.0.1 or 0.0.0.0.",
                )
            else:
                self.problem(f"Port {port} on {address}: {error}.", f"Correct {variable}.")
            return
        if not reachable:
            self.port_taken(entry, *owner(self.containers, address, port))

    def port_taken(self, entry: dict[str, Any], owner: str, stop: str) -> None:
        self.problem(
            f"Port {entry['port']} ({entry['variable']}) on {entry['address']} is in use by "
            f"{owner}.",
            f"{stop[0].upper()}{stop[1:]}, or set {entry['variable']} to another port.",
        )

    # Disk and data

    def check_disk(self) -> None:
        root_dir = self.facts["docker"]["root_dir"] or DATA_ROOT
        images_dir = self.facts["docker"]["images_dir"] or DATA_ROOT
        images_mb = 0 if self.image_present else self.params["disk_images_mb"]
        docker_mb = self.params["disk_docker_mb"]
        places = [(self.params["stack_dir"], self.params["disk_stack_mb"], "stack_dir")]
        if images_dir == root_dir:
            places.append((root_dir, docker_mb + images_mb, "Docker's data"))
        else:
            places.append((root_dir, docker_mb, "Docker's data"))
            places.append((images_dir, images_mb, "its images"))
        filesystems: dict[int, tuple[list[str], int, Path]] = {}
        self.facts["disk"] = {}
        for wanted, needed, what in places:
            if not wanted.startswith("/"):
                continue
            path = existing_parent(Path(wanted))
            device = path.stat().st_dev
            names, total, _ = filesystems.get(device, ([], 0, path))
            filesystems[device] = ([*names, f"{what} ({wanted})"], total + needed, path)
            self.facts["disk"][wanted] = {"free_mb": free_mb(path), "needed_mb": needed}
        for names, needed, path in filesystems.values():
            free = free_mb(path)
            if free < needed:
                self.problem(
                    f"{free} MiB are free on the file system of {' and '.join(names)}, "
                    f"{needed} MiB are needed.",
                    "Free some space (docker system df shows what Docker holds, docker image prune "
                    "removes unused images), enlarge the file system, or move the data elsewhere "
                    "(stack_dir; data-root in docker_daemon_options).",
                )

    def check_measurements(self) -> None:
        wanted = self.params["measurements_mb"]
        root_dir = self.facts["docker"]["root_dir"] or DATA_ROOT
        path = existing_parent(Path(self.params["measurements_dir"] or root_dir))
        status = os.statvfs(path)
        total = int(status.f_blocks * status.f_frsize // 2**20)
        # What is free now says little: measurements that are there already count towards it.
        if wanted > total * MEASUREMENTS_SHARE:
            self.problem(
                f"prometheus_retention_size_mb is {wanted} MiB, and the whole file system of "
                f"{path} has {total} MiB.",
                f"Keep it below {MEASUREMENTS_SHARE:.0%} of that, or point prometheus_data_dir to "
                "a larger disk.",
            )

    def check_postgres(self) -> None:
        major = self.params["postgres_major"]
        if not major:
            return
        base = self.params["postgres_data_dir"] or self.volume_path
        if not base and self.params["postgres_volume"]:
            root_dir = self.facts["docker"]["root_dir"] or DATA_ROOT
            base = f"{root_dir}/volumes/{self.params['postgres_volume']}/_data"
        if not base:
            return
        for directory in (base, f"{base}/data", f"{base}/pgdata"):
            found = read(f"{directory}/PG_VERSION").strip()
            if not found:
                continue
            if found != str(major):
                self.problem(
                    f"{directory} holds data of PostgreSQL {found}; the stack runs PostgreSQL "
                    f"{major}, which would refuse it.",
                    f"Set postgres_version to {found}, or bring the database there with `make "
                    f"upgrade-postgres TO={major}`. One of a version that postgres_version does "
                    f"not take is dumped with PostgreSQL {found} (pg_dumpall), moved away and "
                    "restored into the new database; or point postgres_data_dir elsewhere.",
                )
            return

    # The firewall

    def check_firewall(self) -> None:
        keeper = firewall.project_of(read(str(firewall.RULES)))
        wanted = self.params["firewall"]
        ours = bool(wanted) and keeper == wanted["project"]
        self.facts["firewall"] = {"ours": ours, "ssh_ports": []}
        if not wanted or not wanted["enabled"]:
            return
        self.facts["firewall"]["ssh_ports"] = firewall.ssh_ports()
        if keeper and not ours:
            self.problem(
                f"The firewall of this host is the stack {keeper}'s ({firewall.RULES}), and one "
                "host has one firewall.",
                "Set firewall_enabled to false here, and name this stack's ports in that one's "
                f"firewall_tcp_ports; or remove {firewall.RULES} when that stack is gone.",
            )
        refusal = firewall.refusal() if self.root else 0
        if refusal == errno.EPERM:
            self.problem(
                "firewall_enabled is true, but root may not manage this host's network.",
                "Give the container that it is CAP_NET_ADMIN, or set firewall_enabled to false.",
            )
        elif refusal:
            self.problem(
                "firewall_enabled is true, but the kernel has no nftables "
                f"({os.strerror(refusal)}).",
                "Load it (modprobe nf_tables), take a kernel that has it, or set firewall_enabled "
                "to false.",
            )
        leading = firewall.leading_outside(wanted["inside"])
        if leading:
            self.problem(
                f"By its name {', '.join(leading)} would pass for one of Docker's bridges "
                f"({', '.join(wanted['inside'])}), and a network card is behind it.",
                "Call it something else; or, if whatever comes in by it is to be let through, name "
                "it in full in firewall_inside_interfaces.",
            )

    # What other roles ask about

    def find_packages(self) -> None:
        self.facts["packages_missing"] = [
            package["name"]
            for package in self.params["packages"]
            if not (
                (package["command"] and shutil.which(package["command"]))
                or (package["python"] and importlib.util.find_spec(package["python"]))
                or (package["path"] and Path(package["path"]).exists())
            )
        ]

    def find_sockets(self) -> None:
        wanted = self.params["sockets"]
        if not wanted:
            return
        path = Path(wanted["path"])
        parts = directories(path, wanted["slots"], wanted["owner"], wanted["group"])
        ready = not any(directory.differs() for directory in parts)
        self.facts["sockets"] = {
            "active": active(path),
            "ready": ready,
            "secrets": {slot: self.secrets_of(slot) for slot in wanted["slots"]},
        }

    def secrets_of(self, slot: str) -> dict[str, dict[str, str]]:
        """What a slot's live definition, which may outlast the tree that made it, refers to."""
        home = Path(self.params["stack_dir"], "services")
        text = read(f"{home}/api/current/{slot}.yml")
        lists = re.findall(r"^ *secrets: \[(.*)\]$", text, re.MULTILINE)
        try:
            live = json.loads(read(f"{home}/stack/current/secrets.json"))["secrets"]
        except (ValueError, KeyError):
            return {}
        return {name: live[name] for name in ", ".join(lists).split(", ") if name in live}

    def find_directories(self) -> None:
        self.facts["directories"] = []
        for wanted in self.params["directories"]:
            owner, group = (int(number) for number in wanted["user"].split(":"))
            directory = Directory(Path(wanted["path"]), int(wanted["mode"], 8), owner, group)
            if directory.path.is_dir() and not directory.differs():
                self.facts["directories"].append(wanted["path"])

    def find_trees(self) -> None:
        home = f"{self.params['stack_dir']}/services"
        self.facts["trees"] = {}
        # What is odd about them is reported by whoever is to change them.
        with contextlib.suppress(TreeError, OSError):
            self.facts["trees"] = live_digests(home)

    def find_secrets(self) -> None:
        self.facts["secrets"] = {"ready": False}
        wanted = self.params["secrets"]
        if not wanted:
            return
        try:
            found = in_order(
                Path(wanted["path"]), wanted["names"], wanted["known"], wanted["digests"]
            )
        except (RefusedError, OSError, UnicodeDecodeError):
            # The role says what is wrong when it comes to it.
            return
        if found:
            unused = found.unused(wanted["names"])
            self.facts["secrets"] = {
                "ready": True,
                "versions": found.versions,
                "unused": unused,
                "former": sorted({item.name for item in found.former()}),
            }

    def find_certificate(self) -> None:
        self.facts["certificate"] = {"ready": False}
        if not self.params["certificate"]:
            return
        try:
            # Not at the top: the library that this needs may yet have to be installed.
            from ansible.module_utils.certificate_store import UnusableError, keep
        except ImportError:
            return
        try:
            found = keep({**self.params["certificate"], "certificate": None}, check_mode=True)
        except (UnusableError, OSError):
            # The role says what is wrong when it comes to it.
            return
        self.facts["certificate"] = {
            "ready": not found["changed"] and not found["reasons"],
            "certificate": found["certificate"],
        }


def os_release() -> dict[str, str]:
    text = read("/etc/os-release") or read("/usr/lib/os-release")
    return {
        key: value.strip("\"'") for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)
    }


def existing_parent(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def free_mb(path: Path) -> int:
    status = os.statvfs(path)
    return int(status.f_bavail * status.f_frsize // 2**20)


def bind(address: str, port: int) -> bool:
    """Return whether the port is free. Nothing listens: a bound socket alone answers nobody."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((address, port))
        except PermissionError:
            return not listening_inodes(address, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def main() -> None:
    text = {"type": "str", "default": ""}
    number = {"type": "int", "default": 0}
    texts = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "stack_dir": text,
            "stack_project": text,
            "stack_entries": texts,
            "unfinished": text,
            "ports": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "variable": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "address": {"type": "str", "default": "0.0.0.0"},  # noqa: S104
                },
            },
            "postgres_major": number,
            "postgres_data_dir": text,
            "postgres_volume": text,
            "distributions": texts,
            "architectures": texts,
            "python_min": text,
            "engine_min": text,
            "compose_min": text,
            "memory_mb": number,
            "disk_stack_mb": number,
            "disk_docker_mb": number,
            "disk_images_mb": number,
            "measurements_mb": number,
            "measurements_dir": text,
            "images": texts,
            "clock_skew_seconds": {"type": "int", "default": 300},
            "controller_time": {"type": "float", "default": 0},
            "daemon_options": {"type": "dict", "default": {}},
            "packages": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "command": {"type": "str"},
                    "python": {"type": "str"},
                    "path": {"type": "str"},
                },
            },
            "sockets": {
                "type": "dict",
                "options": {
                    "path": {"type": "path", "required": True},
                    "slots": {"type": "list", "elements": "str", "required": True},
                    "owner": {"type": "int", "required": True},
                    "group": {"type": "int", "required": True},
                },
            },
            "certificate": {
                "type": "dict",
                "options": {
                    "path": {"type": "path", "required": True},
                    "names": {"type": "list", "elements": "str", "required": True},
                    "owner": {"type": "int", "required": True},
                    "renew_days": {"type": "int", "required": True},
                    "authority": {"type": "bool", "required": True},
                    "keeper": {"type": "bool", "default": False},
                    "renew": {"type": "bool", "required": True},
                },
            },
            "volumes": texts,
            "directories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "str", "required": True},
                    "user": {"type": "str", "required": True},
                    "mode": {"type": "str", "required": True},
                },
            },
            "marks": {"type": "dict", "default": {}},
            "secrets": {
                "type": "dict",
                "no_log": False,
                "options": {
                    "path": {"type": "path", "required": True},
                    "names": {"type": "list", "elements": "str", "required": True},
                    "known": {"type": "list", "elements": "str", "required": True},
                    "digests": {"type": "dict", "required": True, "no_log": True},
                },
            },
            "firewall": {
                "type": "dict",
                "options": {
                    "enabled": {"type": "bool", "required": True},
                    "project": {"type": "str", "required": True},
                    "inside": {"type": "list", "elements": "str", "required": True},
                },
            },
            "become_error": text,
        },
        supports_check_mode=True,
    )
    preflight = Preflight(module.params)
    preflight.run()
    module.exit_json(changed=False, problems=preflight.problems, facts=preflight.facts)


if __name__ == "__main__":
    main()
