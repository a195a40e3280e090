"""One run at a time: a lock on the host that says who has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENTATION = r"""
module: run_lock
short_description: Let one run at a time change a host
version_added: "1.0.0"
author: compose-stack
description:
  - Takes a lock that lasts beyond the task, or fails and says who has it, since when, and how to
    clear it.
  - A lock counts no more when it has expired, when the host has been booted since, or when the run
    that took it was started on this controller and has ended, killed for instance.
  - Where the module cannot run at all, because there is no sudo or no Python, it takes no lock and
    does not fail. What comes next says so better.
options:
  path:
    description: The file that is the lock. On a file system that a reboot empties.
    type: path
    required: true
  state:
    description: V(held) takes the lock, V(released) gives back one's own, V(cleared) anybody's.
    type: str
    choices: [held, released, cleared]
    default: held
  minutes:
    description: Minutes after which the lock counts no more.
    type: int
    default: 60
  journal:
    description:
      - A file to which a line is added whenever a run begins and when it ends, each a JSON object.
        A beginning without an end is a run that was killed.
      - Nothing is written in check mode, nor while the file's directory does not exist.
    type: path
  why:
    description: Why the run is made; for the journal.
    type: str
    default: ''
  outcome:
    description: How the run ended; for the journal.
    type: str
    default: done
  owner:
    description: Who takes it. Set by the action plugin.
    type: dict
    default: {}
  ended:
    description: The token of a lock whose run has ended. Set by the action plugin.
    type: str
    default: ''
attributes:
  check_mode:
    description: The lock is taken in check mode, too. It keeps another run from changing what is
      being looked at.
    support: full
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: Let nobody else change the stack meanwhile
  run_lock:
    path: /run/compose-stack/web.lock
"""

RETURN = r"""
owner:
  description: Who had the lock when the module ended, or before it was cleared; C(since) when, in
    seconds since 1970.
  returned: when anybody had it
  type: dict
"""

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path


class Lock:
    """The file, looked at and changed by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def owner(self) -> dict[str, Any]:
        """Who has the lock; empty when nobody does, or when what is there is no lock."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        whole = isinstance(found, dict) and {"token", "expires"} <= found.keys()
        return found if whole and found["expires"] > time.time() else {}

    def take(self, owner: dict[str, Any], minutes: int, ended: str) -> dict[str, Any]:
        """Take the lock and return {}, or return who has it."""
        with self._alone():
            other = self.owner()
            if other and other["token"] not in (owner["token"], ended):
                return other
            now = time.time()
            fresh = self.path.with_suffix(".fresh")
            text = json.dumps({**owner, "since": now, "expires": now + minutes * 60})
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(self.path)
        return {}

    def give_back(self, token: str | None) -> dict[str, Any]:
        """Remove the lock, with a token only that one's; return whose it was."""
        if not self.path.exists():
            return {}
        with self._alone():
            other = self.owner()
            if token is None or other.get("token") == token:
                self.path.unlink(missing_ok=True)
                return other
        return {}

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with self.path.with_suffix(".guard").open("w", encoding="utf-8") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield


def note(journal: Path, event: str, owner: dict[str, Any], **facts: Any) -> None:
    """Add a line to the journal, whole or not at all."""
    if not journal.parent.is_dir():
        return
    about = {name: owner.get(name, "") for name in ("token", "who", "what")}
    line = json.dumps({"at": time.time(), "event": event, **about, **facts}) + "\n"
    with journal.open("ab", buffering=0) as file:
        file.write(line.encode())
        os.fsync(file.fileno())


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {
                "type": "str",
                "default": "held",
                "choices": ["held", "released", "cleared"],
            },
            "minutes": {"type": "int", "default": 60},
            "journal": {"type": "path"},
            "why": {"type": "str", "default": ""},
            "outcome": {"type": "str", "default": "done"},
            "owner": {"type": "dict", "default": {}},
            "ended": {"type": "str", "default": "", "no_log": False},
        },
        supports_check_mode=True,
    )
    lock = Lock(Path(module.params["path"]))
    owner = module.params["owner"]
    journal = module.params["journal"] if not module.check_mode else None
    try:
        if module.params["state"] == "held":
            other = lock.take(owner, module.params["minutes"], module.params["ended"])
            if journal and not other:
                note(Path(journal), "began", owner, why=module.params["why"])
            # As it was written: with when it was taken.
            module.exit_json(changed=False, held=not other, owner=other or lock.owner() or owner)
        cleared = module.params["state"] == "cleared"
        former = lock.give_back(None if cleared else owner.get("token"))
        if journal and former:
            facts = {"why": module.params["why"], "since": former["since"]}
            outcome = "its lock was cleared" if cleared else module.params["outcome"]
            note(Path(journal), "ended", former, outcome=outcome, **facts)
        module.exit_json(changed=cleared and bool(former), owner=former)
    except OSError as error:
        module.fail_json(
            msg=f"Cannot keep the lock: {error.strerror} ({error.filename}).", refused=True
        )


if __name__ == "__main__":
    main()
