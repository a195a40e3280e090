"""Have services read their configuration anew, and remember what each has read."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    from collections.abc import Mapping

DOCUMENTATION = r"""
module: service_reload
short_description: Have services of a compose project read their configuration anew
version_added: "1.0.0"
author: compose-stack
description:
  - Sends a signal to the containers of every service that has not read what O(loads) says, then
    writes into O(record) what they have read.
  - A handler that was notified is forgotten when a run is interrupted or fails, and no later run
    finds anything changed. The record is not - whatever a run has not come to, the next one does.
  - A service without a running container is left out. It will read its files when it starts.
options:
  project_name:
    description: Name of the compose project.
    type: str
    required: true
  loads:
    description: What each service reads, by service and by part, as any text that changes with it.
    type: dict
    required: true
  started:
    description: Services whose containers were started after the files were put in place, and have
      read them.
    type: list
    elements: str
    default: []
  record:
    description: File that keeps what was read.
    type: path
    required: true
  signal:
    description: Signal that makes them read.
    type: str
    default: HUP
  docker:
    description: The Docker client.
    type: str
    default: docker
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Have nginx read a new certificate
  service_reload:
    project_name: stack
    loads:
      nginx: {certificate: "{{ fingerprint }}"}
    record: /opt/stack/state/loaded.json
"""

RETURN = r"""
reloaded:
  description: Services that were sent the signal.
  type: list
  elements: str
  returned: success
"""

LABEL = "com.docker.compose."


def read(record: Path) -> dict[str, dict[str, str]]:
    """What services have read; nothing when there is no such file, or no sense in it."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(record: Path, loaded: Mapping[str, Any]) -> None:
    """Replace the record in one step."""
    record.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{record.name}.", dir=record.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            os.fchmod(descriptor, 0o644)
            json.dump(loaded, stream, indent=2, sort_keys=True)
            stream.write("\n")
        Path(temporary).replace(record)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def merge(
    loaded: Mapping[str, Mapping[str, str]], loads: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """What will have been read, parts that nobody asks about included."""
    return {name: {**loaded.get(name, {}), **loads.get(name, {})} for name in loaded.keys() | loads}


def main() -> None:
    """Entry point of Ansible."""
    module = AnsibleModule(
        argument_spec={
            "project_name": {"type": "str", "required": True},
            "loads": {"type": "dict", "required": True},
            "started": {"type": "list", "elements": "str", "default": []},
            "record": {"type": "path", "required": True},
            "signal": {"type": "str", "default": "HUP"},
            "docker": {"type": "str", "default": "docker"},
        },
        supports_check_mode=True,
    )
    params = module.params

    def docker(*words: str) -> str:
        try:
            done = subprocess.run(
                [params["docker"], *words], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:  # no Docker, no container
            return ""
        if done.returncode != 0:
            module.fail_json(
                msg=f"docker {words[0]} failed, so nothing was reloaded: {done.stderr.strip()}. "
                "Mend the cause and run the same command again."
            )
        return done.stdout

    record = Path(params["record"])
    loaded = read(record)
    running: dict[str, list[str]] = {}
    for line in docker(
        "ps", f"--filter=label={LABEL}project={params['project_name']}", "--format",
        f'{{{{.ID}}}} {{{{.Label "{LABEL}service"}}}}',
    ).splitlines():  # fmt: skip
        identifier, _, service = line.partition(" ")
        running.setdefault(service, []).append(identifier)
    loads = {name: parts for name, parts in params["loads"].items() if name in running}
    after = merge(loaded, loads)
    behind = sorted(
        name for name in loads if after[name] != loaded.get(name) and name not in params["started"]
    )
    if not module.check_mode:
        if behind:
            signalled = [identifier for name in behind for identifier in running[name]]
            # Not by `docker kill`: whatever the signal, the engine takes a container for stopped by
            # hand from then on, and starts it again neither after a crash nor at boot.
            processes = docker("inspect", "--format={{.State.Pid}}", *signalled).split()
            for process in filter(None, map(int, processes)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.Signals[f"SIG{params['signal']}"])
        if after != loaded:
            try:
                write(record, after)
            except OSError as error:
                module.fail_json(msg=f"Cannot write {record}: {error.strerror}.")
    module.exit_json(
        changed=after != loaded,
        reloaded=behind,
        diff={
            "before": "".join(f"{name}: {loaded.get(name)}\n" for name in behind),
            "after": "".join(f"{name}: {after[name]}\n" for name in behind),
        },
    )


if __name__ == "__main__":
    main()
