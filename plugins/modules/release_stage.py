"""Make an earlier release ready to run again."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    from collections.abc import Callable

DOCUMENTATION = r"""
module: release_stage
short_description: Make an earlier release ready to run again
version_added: "1.0.0"
author: compose-stack
description:
  - Stages the trees that M(release_record) kept, for M(activate_trees) to make live. The slot that
    serves stays as it is, and the other gets the release's version.
  - With O(switch) it lets the release's version serve at once where it still stands by, as
    M(switch_slot) would. The rest of the release may follow then. In an execution of its own, the
    switch would come half a second later.
  - The release runs with the secrets of today, whatever they were then.
  - Fails before anything is staged when an image or a secret that the release needs is gone, or
    when the data has been moved since.
options:
  path:
    description: Directory that the releases are kept in.
    type: path
    required: true
  number:
    description: The release; by default the one before the last.
    type: int
  services:
    description: Directory that the trees are live in.
    type: path
    required: true
  stage:
    description: Directory to stage them in.
    type: path
    required: true
  sockets:
    description: Directory that holds the slots.
    type: path
    required: true
  slots:
    description: Names of the slots.
    type: list
    elements: str
    required: true
  secrets:
    description: Directory that M(secret_files) keeps.
    type: path
    required: true
  loaded:
    description: File in which M(service_reload) keeps what each service has read.
    type: path
    required: true
  switch:
    description: How to switch, in the words of M(switch_slot). The public address is that of the
      last release.
    type: dict
    suboptions:
      watch_seconds:
        description: How long the slot is watched after the switch.
        type: float
        default: 1
      gateway_log:
        description: A command that prints the access log of the proxy in front of the slots.
        type: list
        elements: str
        default: []
      drain_seconds:
        description: How long the slot before may take until it has begun whatever it was sent.
        type: float
        default: 60
attributes:
  check_mode:
    description: The stage is scratch space, and written in check mode, too. Nothing is switched.
    support: full
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: Stage the release before the last
  release_stage:
    path: /opt/stack/state/releases
    services: /opt/stack/services
    stage: /var/tmp/stack.stage/services
    sockets: /opt/stack/run/sockets
    slots: [blue, green]
    secrets: /opt/stack/secrets
    loaded: /opt/stack/state/loaded.json
"""

RETURN = r"""
release:
  description: The release's record, with the versions that its secrets have now.
  returned: success
  type: dict
former:
  description: Secrets of which there is an earlier version, too.
  returned: success
  type: list
  elements: str
latest:
  description: The record of the last release, which serves now.
  returned: success
  type: dict
serving:
  description: Slot that serves now, or null.
  returned: success
  type: str
target:
  description: Slot that shall serve the release.
  returned: success
  type: str
stands_by:
  description: Whether that slot has the release's version already, and need not be started if it
    still runs.
  returned: success
  type: bool
switched:
  description:
    - What M(switch_slot) would have returned. With V(msg) where the version that stands by could
      not take over, and the slot that served before does so still.
    - Empty where nothing stands by, or nothing was to be switched.
  returned: success
  type: dict
loads:
  description: What each service that can reload shall have read.
  returned: success
  type: dict
"""

ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    "path": {"type": "path", "required": True},
    "number": {"type": "int"},
    "services": {"type": "path", "required": True},
    "stage": {"type": "path", "required": True},
    "sockets": {"type": "path", "required": True},
    "slots": {"type": "list", "elements": "str", "required": True},
    "secrets": {"type": "path", "required": True, "no_log": False},
    "loaded": {"type": "path", "required": True},
    "switch": {
        "type": "dict",
        "options": {
            "watch_seconds": {"type": "float", "default": 1},
            "gateway_log": {"type": "list", "elements": "str", "default": []},
            "drain_seconds": {"type": "float", "default": 60},
        },
    },
}
EVERYWHERE = "0.0.0.0"  # noqa: S104  read, not listened on


def missing(release: dict[str, Any], versions: dict[str, str]) -> list[str]:
    """What the release needs and is not there any more."""
    wanted = sorted(set(release["images"].values()))
    asked = ["docker", "image", "inspect", "--format", "{{.Id}}"]

    def absent(images: list[str]) -> bool:
        done = subprocess.run([*asked, *images], capture_output=True, timeout=60, check=False)
        return done.returncode != 0

    # One call where all is well; which one it is, is asked when one is missing.
    gone = [f"image {image}" for image in wanted if absent([image])] if absent(wanted) else []
    return gone + [f"secret {name}" for name in sorted(release["secrets"].keys() - versions)]


def moved(release: dict[str, Any], latest: dict[str, Any]) -> str:
    """Which directories of data are not where they were; empty when all are."""
    return ", ".join(
        f"{name} was {then or 'a volume'} and is {latest['data'][name] or 'a volume'}"
        # Before there was another, a record did not name it.
        for name, then in sorted({"postgres_version": 17, **release["data"]}.items())
        if str(then) != str(latest["data"].get(name, then))
    )


def loads(release: dict[str, Any], record: Path) -> dict[str, Any]:
    """What services shall have read: the release's configuration, and what is no part of it.

    A certificate is renewed whatever release runs.
    """
    try:
        read = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        read = {}
    found: dict[str, Any] = {}
    for service, parts in release["loads"].items():
        before = read.get(service) if isinstance(read, dict) else None
        others = before if isinstance(before, dict) else {}
        found[service] = {**parts, **others, "config": parts["config"]}
    return found


def public(address: dict[str, Any]) -> dict[str, Any]:
    """Where the last release answers, as seen from this machine."""
    published = address["nginx_publish_address"]
    return {
        "host": "127.0.0.1" if published == EVERYWHERE else published,
        "port": int(address["nginx_https_port"]),
        "name": address["stack_server_names"][0],
        "path": "/health",
    }


def switch(params: dict[str, Any], warn: Callable[[str], None]) -> dict[str, Any]:
    """Let what stands by serve; what became of it."""
    from ansible.module_utils.switching import Switch, SwitchError

    switching = Switch(params, warn)
    try:
        switching.run()
    except SwitchError as reason:
        return {"msg": str(reason), **switching.facts()}
    found: dict[str, Any] = switching.facts()
    return found


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    # Not at the top: a linter that imports this file to read its arguments has no such module.
    from ansible.module_utils import releases, slots, trees
    from ansible.module_utils.secret_store import RefusedError, SecretFiles, read

    params = module.params
    path = Path(params["path"])
    kept = releases.numbers(path)
    number = params["number"]
    if number is None:
        if len(kept) < 2:
            module.fail_json(
                msg="There is no release before the present one: `make releases` lists them."
            )
        number = kept[-2]
    serving = slots.active(Path(params["sockets"]))
    try:
        release = releases.load(path, number)
        secrets = SecretFiles(Path(params["secrets"]), check_mode=module.check_mode)
        secrets.prepare()
        for name in release.get("secrets", {}):
            if read(secrets.directory / name):
                secrets.ensure(name, None)
        restored = releases.restore(
            path, number, Path(params["services"]), params["slots"], serving, secrets.versions
        )
        latest = releases.load(path, kept[-1])
        elsewhere = moved(release, latest)
        if elsewhere:
            module.fail_json(
                msg=f"Release {number} kept its data elsewhere ({elsewhere}): going back would "
                "serve what was left there. Nothing was changed. Deploy that version with the "
                "present directories instead: `git checkout`, `make up`."
            )
        gone = missing(release, secrets.versions)
        if gone:
            module.fail_json(
                msg=f"Release {number} cannot run again: {', '.join(gone)} is gone. Nothing was "
                "changed. Choose another of `make releases`, or bring it back."
            )
        releases.stage(Path(params["stage"]), restored.trees)
        release = {**release, "secrets": secrets.versions}
    except (trees.TreeError, RefusedError, OSError) as error:
        module.fail_json(msg=f"{error}. Nothing was changed.")
    switched: dict[str, Any] = {}
    if params["switch"] and restored.stands_by and not module.check_mode:
        arguments = {
            "path": params["sockets"],
            "target": restored.target,
            "public": public(latest["address"]),
            "pace": 20.0,
            "before_seconds": 0.0,
            **params["switch"],
        }
        switched = switch(arguments, module.warn)
    module.exit_json(
        changed=switched.get("active", serving) != serving,
        release=release,
        latest=latest,
        former=sorted({item.name for item in secrets.former()}),
        serving=serving,
        target=restored.target,
        stands_by=restored.stands_by,
        switched=switched,
        loads=loads(release, Path(params["loaded"])),
    )


if __name__ == "__main__":
    main()
