"""What `docker compose up` would have to do, found out without doing any of it."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DOCUMENTATION = r"""
module: compose_plan
short_description: Tell what docker compose up would have to do
version_added: "1.0.0"
author: compose-stack
description:
  - Compares the services of a compose project with its containers and says for each service
    whether its containers
    can stay. It only reads, in check mode and without.
  - With O(activation) it says whether the trees that were staged differ from those that are live,
    too, which saves the execution of M(activate_trees) when they do not.
  - A service is up to date when it has as many containers as it should, all created from its
    present configuration
    (the hash of C(docker compose config --hash) against the label
    C(com.docker.compose.config-hash)) and image, and
    they run.
  - A service that others wait for with C(service_completed_successfully) may have exited with code
    0 instead.
  - What C(docker compose up --no-deps) has started counts as changed, because compose hashes a
    service without its dependencies then, and the next C(up) without that flag does recreate it.
  - C(docker compose up --dry-run) is no substitute. It needs the images and the daemon, and starts
    one-shot services
    again.
options:
  project_directory:
    description: Directory that relative paths in the compose files start from.
    type: path
    required: true
  project_name:
    description: Name of the compose project.
    type: str
    required: true
  files:
    description: Compose files; by default the one that compose finds in O(project_directory).
    type: list
    elements: path
    default: []
  env_files:
    description: Files with values for the variables in the compose files.
    type: list
    elements: path
    default: []
  profiles:
    description: Active profiles.
    type: list
    elements: str
    default: []
  loads:
    description:
      - What each service that can reload reads of its configuration, by service and by part, as any
        text that changes with it.
    type: dict
    default: {}
  record:
    description: File in which M(service_reload) keeps what each service has read.
    type: path
  activation:
    description:
      - The arguments that M(activate_trees) would get. When the stage holds what is live, it is
        scratch that nobody needs any more, and is removed.
    type: dict
  rendered:
    description:
      - The digest of each tree that M(render_tree) rendered, by name. With O(activation), those
        that it did not stage because they are live are copied to the stage first.
    type: dict
    default: {}
  releases:
    description:
      - Directory in which M(release_record) keeps what was deployed. With it and O(activation) the
        module says whether the newest there is what was staged.
    type: path
  standby:
    description:
      - Services that are scaled to 0 because others have taken their place, and whose containers
        may stay in case those have to be replaced in turn. They stay while all of them run and are
        healthy as the compose files have them, and while the secrets are those of the successors.
    type: dict
    suboptions:
      services:
        description:
          - The services, each with the one that has taken its place or is about to. One that the
            compose files do not have is passed over.
        type: dict
        required: true
      label:
        description: The label that tells the versions of a service's secrets.
        type: str
        required: true
  services:
    description: Names to report as V(create) on a host that has no Docker yet, where nobody can
      read the compose files.
    type: list
    elements: str
    default: []
  docker:
    description: The Docker client.
    type: str
    default: docker
  timeout:
    description: Seconds each call of the Docker client may take.
    type: int
    default: 60
attributes:
  check_mode:
    description: The module never changes anything but the stage, which is scratch space.
    support: full
  diff_mode:
    description: Shows the state of each service that needs work, before and after.
    support: full
"""

EXAMPLES = r"""
- name: See what is to do
  compose_plan:
    project_directory: /opt/stack
    project_name: stack
  register: plan

- name: Start what is not as it should be
  community.docker.docker_compose_v2:
    project_src: /opt/stack
    project_name: stack
    remove_orphans: true
  when: plan is changed and not ansible_check_mode
"""

RETURN = r"""
services:
  description:
    - One of V(keep), V(create), V(recreate), V(start), V(remove) for each service that has or
      should have containers.
  returned: success
  type: dict
  sample: {api: recreate, redis: keep}
containers:
  description: How many containers each service has now, for those that have any.
  returned: success
  type: dict
  sample: {api: 2, redis: 1}
alone:
  description:
    - Services to recreate that others depend on, and that depend on none themselves. C(docker
      compose up) would stop and start whatever depends on them; with C(--no-deps) it takes them
      alone. It must not be used for a service that has dependencies, because they are part of
      the hash.
  returned: success
  type: list
  elements: str
needed:
  description: Services that others depend on.
  returned: success
  type: list
  elements: str
reasons:
  description: Why, for each service that is not kept or is unhealthy.
  returned: success
  type: dict
unhealthy:
  description: Services that are up to date but unhealthy, or restart again and again. They count
    as work to do.
  returned: success
  type: list
  elements: str
standby:
  description: Whether the containers of O(standby) stay.
  returned: success
  type: bool
serving:
  description: Whether any container runs and is healthy, as far as that is checked.
  returned: success
  type: bool
reload:
  description: Services whose containers stay and that have not read what O(loads) says.
  returned: success
  type: list
  elements: str
unrecorded:
  description: Whether O(record) does not say what O(loads) says.
  returned: success
  type: bool
release_due:
  description: Whether what was staged is another release than the newest that is kept.
  returned: with O(releases)
  type: bool
activation_due:
  description: Whether M(activate_trees) would change anything.
  returned: with O(activation)
  type: bool
note:
  description: Says that Docker does not answer, so that everything has to be created.
  returned: when Docker does not answer
  type: str
"""

ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    "project_directory": {"type": "path", "required": True},
    "project_name": {"type": "str", "required": True},
    "files": {"type": "list", "elements": "path", "default": []},
    "env_files": {"type": "list", "elements": "path", "default": []},
    "profiles": {"type": "list", "elements": "str", "default": []},
    "loads": {"type": "dict", "default": {}},
    "record": {"type": "path"},
    "activation": {"type": "dict"},
    "rendered": {"type": "dict", "default": {}},
    "releases": {"type": "path"},
    "standby": {
        "type": "dict",
        "options": {
            "services": {"type": "dict", "required": True},
            "label": {"type": "str", "required": True},
        },
    },
    "services": {"type": "list", "elements": "str", "default": []},
    "docker": {"type": "str", "default": "docker"},
    "timeout": {"type": "int", "default": 60},
}

# What activate_trees assumes of what is not given.
OPTIONAL: dict[str, Any] = {"stage_root": None, "names": None, "links": {}, "links_directory": None}

LABEL = "com.docker.compose."


class PlanError(Exception):
    """A failure whose message names the cause and the remedy."""


class UnreachableError(Exception):
    """The daemon does not answer, and why."""


@dataclass(frozen=True)
class Service:
    """What the compose files ask for."""

    config_hash: str
    replicas: int
    image_id: str | None = None
    one_shot: bool = False
    depends_on: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Container:
    """What is there."""

    service: str
    config_hash: str
    image_ids: frozenset[str]
    state: str
    exit_code: int
    health: str | None

    def describe(self) -> str:
        """A word or two for the operator."""
        if self.state == "exited":
            return f"exited with code {self.exit_code}"
        return f"{self.state}, {self.health}" if self.health else self.state


def expected_services(
    config: Mapping[str, Any], hashes: Mapping[str, str], image_ids: Mapping[str, str]
) -> dict[str, Service]:
    """Read the rendered configuration."""
    services = config.get("services") or {}
    awaited = {
        name
        for service in services.values()
        for name, condition in (service.get("depends_on") or {}).items()
        if condition.get("condition") == "service_completed_successfully"
    }
    result = {}
    for name, service in services.items():
        replicas = service.get("scale", (service.get("deploy") or {}).get("replicas"))
        image = service.get("image") or f"{config.get('name')}-{name}"
        result[name] = Service(
            config_hash=hashes.get(name, ""),
            replicas=1 if replicas is None else int(replicas),
            image_id=image_ids.get(image),
            one_shot=name in awaited and service.get("restart", "no") == "no",
            depends_on=frozenset(service.get("depends_on") or {}),
            labels=service.get("labels") or {},
        )
    return result


def decide(service: Service | None, containers: Sequence[Container]) -> tuple[str, str]:
    """The action for one service, and why."""
    if service is None:
        return "remove", "not in the compose files"
    if service.replicas == 0:
        return ("remove", "scaled to 0") if containers else ("keep", "")
    if not containers:
        return "create", "no container"
    if any(container.config_hash != service.config_hash for container in containers):
        return "recreate", "its configuration changed"
    if service.image_id and any(service.image_id not in item.image_ids for item in containers):
        return "recreate", "its image changed"
    if len(containers) < service.replicas:
        return "create", f"{len(containers)} of {service.replicas} containers"
    stopped = [item for item in containers if not _serves(item, service.one_shot)]
    if stopped:
        return "start", stopped[0].describe()
    if len(containers) > service.replicas:
        return "remove", f"{len(containers)} containers instead of {service.replicas}"
    return "keep", ""


def _serves(container: Container, one_shot: bool) -> bool:
    if one_shot and container.state == "exited":
        return container.exit_code == 0
    return container.state in {"running", "restarting"}


def stands_by(
    standby: Mapping[str, Any] | None,
    services: Mapping[str, Service],
    present: Mapping[str, Sequence[Container]],
) -> bool:
    """Whether what has been replaced could take over again as it is."""
    if not standby:
        return False
    known = [pair for pair in standby["services"].items() if pair[0] in services]
    return bool(known) and all(
        _could_serve(
            services[name], services.get(successor), present.get(name, []), standby["label"]
        )
        for name, successor in known
    )


def _could_serve(
    service: Service, successor: Service | None, there: Sequence[Container], label: str
) -> bool:
    if not (successor and there):
        return False
    return (
        service.labels.get(label) == successor.labels.get(label)
        and all(item.state == "running" and item.health in {None, "healthy"} for item in there)
        and decide(replace(service, replicas=len(there)), there)[0] == "keep"
    )


def make_plan(
    services: Mapping[str, Service],
    containers: Iterable[Container],
    disabled: Iterable[str] = (),
    standby: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compare what is asked for with what is there."""
    present: dict[str, list[Container]] = {}
    for container in containers:
        present.setdefault(container.service, []).append(container)
    waits = stands_by(standby, services, present)
    # Of a profile that is not active: Compose leaves them alone.
    inactive = set(disabled) - services.keys()
    actions: dict[str, str] = {}
    reasons: dict[str, str] = {}
    unhealthy = []
    for name in sorted({*services, *present}):
        there = present.get(name, [])
        if name in inactive or (standby and waits and name in standby["services"]):
            actions[name] = "keep"
            continue
        service = services.get(name)
        if service and service.replicas == 0 and not there:
            continue
        actions[name], reason = decide(service, there)
        if reason:
            reasons[name] = reason
        if actions[name] == "keep":
            bad = [c for c in there if c.health == "unhealthy" or c.state == "restarting"]
            if bad:
                unhealthy.append(name)
                reasons[name] = bad[0].describe()
    work = sorted({name for name, action in actions.items() if action != "keep"} | {*unhealthy})
    needed = {name for service in services.values() for name in service.depends_on}
    before = {
        name: ", ".join(sorted({c.describe() for c in present.get(name, [])})) or "absent"
        for name in work
    }
    return {
        "changed": bool(work),
        "services": actions,
        "containers": {name: len(there) for name, there in present.items()},
        "alone": sorted(
            name
            for name, service in services.items()
            if actions.get(name) == "recreate"
            and name in needed
            and not (service.depends_on or service.one_shot)
        ),
        "needed": sorted(needed & services.keys()),
        "reasons": reasons,
        "unhealthy": unhealthy,
        "standby": waits,
        "serving": any(
            item.state == "running" and item.health in {None, "healthy"}
            for there in present.values()
            for item in there
        ),
        "diff": {
            "before": "".join(f"{name}: {before[name]}\n" for name in work),
            "after": "".join(f"{name}: {_outcome(name, actions, reasons)}\n" for name in work),
        },
    }


def _outcome(name: str, actions: Mapping[str, str], reasons: Mapping[str, str]) -> str:
    action = "look into it" if actions[name] == "keep" else actions[name]
    return f"{action} ({reasons[name]})"


def add_reloads(
    result: dict[str, Any], loads: Mapping[str, Any], loaded: Mapping[str, Any]
) -> dict[str, Any]:
    """The plan with what has to be read anew by containers that stay."""
    behind = {
        name: [part for part, wanted in parts.items() if loaded.get(name, {}).get(part) != wanted]
        for name, parts in loads.items()
    }
    reload = sorted(
        name
        for name, parts in behind.items()
        if parts and result["services"].get(name) == "keep" and result["containers"].get(name)
    )
    diff = result["diff"]
    return {
        **result,
        "reload": reload,
        "unrecorded": any(behind.values()),
        "diff": {
            "before": diff["before"] + "".join(f"{name}: running\n" for name in reload),
            "after": diff["after"]
            + "".join(f"{name}: reload ({', '.join(behind[name])})\n" for name in reload),
        },
    }


def read_record(path: str | None) -> dict[str, Any]:
    """What service_reload has written; nothing when there is no such file, or no sense in it."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def without_docker(names: Iterable[str], why: str) -> dict[str, Any]:
    """The plan for a host on which nothing can run yet."""
    result = make_plan({name: Service("", 1) for name in names}, [])
    return {
        **result,
        "changed": True,
        "note": f"{why}, so every service has to be created",
    }


class Docker:
    """The few calls of the Docker client that this module needs, all of which only read."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._docker = params["docker"]
        self._timeout = params["timeout"]
        self._compose = ["compose", "--project-directory", params["project_directory"]]
        self._compose += ["-p", params["project_name"]]
        self._compose += [word for file in params["files"] for word in ("-f", file)]
        self._compose += [word for file in params["env_files"] for word in ("--env-file", file)]
        self._profiles = [word for name in params["profiles"] for word in ("--profile", name)]
        self._project = params["project_name"]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the client; a client that is absent or stuck is a failure with a reason."""
        command = [self._docker, *words]
        try:
            return subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                timeout=self._timeout,
                stdin=subprocess.DEVNULL,
            )
        except FileNotFoundError:
            return subprocess.CompletedProcess(command, 127, "", f"{self._docker} is not installed")
        except subprocess.TimeoutExpired:
            why = f"{' '.join(command)} took longer than {self._timeout} s"
            return subprocess.CompletedProcess(command, 124, "", why)

    def has_compose(self) -> bool:
        """Whether the client has the compose plugin."""
        return self.run("compose", "version").returncode == 0

    def config(self, *words: str, profiles: Sequence[str] | None = None) -> str:
        """Output of docker compose config."""
        selected = self._profiles if profiles is None else profiles
        done = self.run(*self._compose, *selected, "config", *words)
        if done.returncode != 0:
            raise PlanError(
                f"docker compose rejects the configuration: {done.stderr.strip()}\n"
                "Correct the file it names; nothing was changed."
            )
        return done.stdout

    def hashes(self) -> dict[str, str]:
        """The configuration hash of each service."""
        lines = self.config("--hash", "*").splitlines()
        return dict(line.split(maxsplit=1) for line in lines if line.strip())

    def _inspect(self, kind: str, names: Sequence[str]) -> list[dict[str, Any]]:
        # What disappears between two calls is not there: the exit code does not matter.
        done = self.run(kind, "inspect", *names) if names else None
        found: list[dict[str, Any]] = json.loads(done.stdout or "[]") if done else []
        return found

    def containers(self) -> list[Container]:
        """The project's containers, those of `docker compose run` left out."""
        label = f"label={LABEL}project={self._project}"
        done = self.run("ps", "-aq", "--no-trunc", "--filter", label)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            raise UnreachableError(
                f"Docker does not answer ({lines[-1] if lines else 'no reason'})"
            )
        return [
            read_container(item)
            for item in self._inspect("container", done.stdout.split())
            if item["Config"]["Labels"].get(f"{LABEL}oneoff", "").lower() != "true"
        ]

    def image_ids(self, images: Sequence[str]) -> dict[str, str]:
        """What the images' names stand for here."""
        wanted = sorted(set(images))
        result = {}
        for item in self._inspect("image", wanted):
            names = {*(item.get("RepoTags") or []), *(item.get("RepoDigests") or [])}
            for image in wanted:
                if normalise(image) & {part for name in names for part in normalise(name)}:
                    result[image] = item["Id"]
        return result


def normalise(image: str) -> set[str]:
    """The short names under which the engine lists an image reference."""
    name, at, digest = image.partition("@")
    for prefix in ("docker.io/library/", "docker.io/", "index.docker.io/library/", "library/"):
        name = name.removeprefix(prefix)
    last = name.rsplit("/", 1)[-1]
    if at:
        repository = name.rsplit(":", 1)[0] if ":" in last else name
        return {f"{repository}@{digest}"}
    return {name if ":" in last else f"{name}:latest"}


def read_container(item: Mapping[str, Any]) -> Container:
    """Read what docker inspect says."""
    labels, state = item["Config"]["Labels"], item["State"]
    return Container(
        service=labels.get(f"{LABEL}service", ""),
        config_hash=labels.get(f"{LABEL}config-hash", ""),
        image_ids=frozenset({item["Image"], labels.get(f"{LABEL}image", "")}),
        state=state["Status"],
        exit_code=state["ExitCode"],
        health=(state.get("Health") or {}).get("Status"),
    )


def plan(params: Mapping[str, Any]) -> dict[str, Any]:
    """Ask Docker and compare."""
    docker = Docker(params)
    # Reading the configuration takes compose most of the time, and twice: at least side by side.
    with ThreadPoolExecutor() as pool:
        pending_config = pool.submit(docker.config, "--format", "json")
        pending_hashes = pool.submit(docker.hashes)
        pending_containers = pool.submit(docker.containers)
    try:
        config = json.loads(pending_config.result())
    except PlanError:
        if docker.has_compose():
            raise
        return without_docker(params["services"], "Docker Compose is not installed")
    try:
        containers = pending_containers.result()
    except UnreachableError as error:
        names = [name for name, item in config["services"].items() if item.get("scale") != 0]
        return without_docker(names, str(error))
    images = [item["image"] for item in config["services"].values() if item.get("image")]
    services = expected_services(config, pending_hashes.result(), docker.image_ids(images))
    disabled: list[str] = []
    if {container.service for container in containers} - services.keys():
        disabled = docker.config("--services", profiles=["--profile", "*"]).split()
    return make_plan(services, containers, disabled, params["standby"])


def release_due(kept: Path, activation: Mapping[str, Any]) -> bool:
    """Tell whether the newest release that is kept has other trees than were staged.

    A run that was killed before it kept its release leaves that to the next, and a record that was
    damaged does not stand in the way of one.
    """
    from ansible.module_utils import releases, trees

    numbers = releases.numbers(kept)
    if not numbers:
        return True
    stage = Path(activation["stage"])
    staged = {
        name: trees.digest(trees.scan(str(stage / name / "current")))
        for name in activation["names"]
    }
    try:
        return bool(releases.load(kept, numbers[-1]).get("trees") != staged)
    except trees.TreeError:
        return True


def main() -> None:
    """Entry point of Ansible."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    params = module.params
    # Not at the top: a linter that imports this file to read its arguments has no such module.
    from ansible.module_utils import trees

    activation = params["activation"]
    try:
        if activation:
            trees.complete_stage(activation["stage"], activation["dest"], params["rendered"])
        result = add_reloads(plan(params), params["loads"], read_record(params["record"]))
        if activation:
            if params["releases"]:
                result["release_due"] = release_due(Path(params["releases"]), activation)
            arguments = {**OPTIONAL, **activation}
            result["activation_due"] = trees.discard_unchanged(arguments)
    except (PlanError, trees.TreeError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
