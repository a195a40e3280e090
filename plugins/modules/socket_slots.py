#!/usr/bin/python
"""Keep the slots' socket directories and the link that names the serving one."""

from __future__ import annotations

DOCUMENTATION = r"""
module: socket_slots
short_description: Socket directories of the slots, and the link to the one that serves
description:
  - Makes one directory for each slot below O(path), in which the slot's processes listen on unix
    sockets.
  - Points the link C(active) at O(active) by a single C(rename(2)), so that whoever connects
    through it meets the old slot or the new one and never nothing.
options:
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
  active:
    description: Slot that the link shall name. Left as it is when omitted.
    type: str
attributes:
  check_mode:
    support: full
author: compose-stack maintainers
"""

EXAMPLES = r"""
- name: Serve from green
  socket_slots:
    path: /opt/compose-stack/run/sockets
    slots: [blue, green]
    owner: 10001
    group: 10001
    active: green
"""

RETURN = r"""
active:
  description: Slot that the link names at the end, or null when there is none yet.
  returned: always
  type: str
previous:
  description: Slot that it named before, or null.
  returned: always
  type: str
"""

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slots import active, directories, point


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "slots": {"type": "list", "elements": "str", "required": True},
            "owner": {"type": "int", "required": True},
            "group": {"type": "int", "required": True},
            "active": {"type": "str"},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    slots: list[str] = module.params["slots"]
    owner: int = module.params["owner"]
    group: int = module.params["group"]
    wanted: str | None = module.params["active"]
    if wanted is not None and wanted not in slots:
        names = ", ".join(slots)
        module.fail_json(msg=f"active is {wanted!r}, which is none of the slots {names}.")

    before = active(path)
    after = wanted or before
    stale = [entry for entry in directories(path, slots, owner, group) if entry.differs()]
    if not module.check_mode:
        try:
            for directory in stale:
                directory.path.mkdir(parents=True, exist_ok=True)
                os.chown(directory.path, directory.owner, directory.group)
                directory.path.chmod(directory.mode)
            if after is not None and after != before:
                point(path, after)
        except OSError as error:
            reason = f"{error.strerror} ({error.filename})"
            module.fail_json(msg=f"Cannot prepare the slots' sockets: {reason}.")
    module.exit_json(
        changed=bool(stale) or after != before,
        active=after,
        previous=before,
        diff={
            "before": f"active: {before}\n" + "".join(f"to do: {entry.path}\n" for entry in stale),
            "after": f"active: {after}\n",
        },
    )


if __name__ == "__main__":
    main()
