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
import pathlib
import stat

from ansible.module_utils.basic import AnsibleModule

LINK = "active"
SLOT_MODE = 0o750


def read_link(path: pathlib.Path) -> str | None:
    """Name the slot that the link leads to, or None when there is no link."""
    link = path / LINK
    return str(link.readlink()) if link.is_symlink() else None


def point(path: pathlib.Path, slot: str) -> None:
    """Point the link at the slot by one rename(2)."""
    fresh = path / f".{LINK}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(slot)
    fresh.replace(path / LINK)


def directory_differs(directory: pathlib.Path, mode: int, owner: int, group: int) -> bool:
    """Tell whether the directory is missing or has another mode or owner."""
    try:
        found = directory.stat()
    except FileNotFoundError:
        return True
    return (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) != (mode, owner, group)


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
    path = pathlib.Path(module.params["path"])
    slots: list[str] = module.params["slots"]
    owner: int = module.params["owner"]
    group: int = module.params["group"]
    wanted: str | None = module.params["active"]
    if wanted is not None and wanted not in slots:
        names = ", ".join(slots)
        module.fail_json(msg=f"active is {wanted!r}, which is none of the slots {names}.")

    before = read_link(path)
    after = wanted or before
    directories = [(path.parent, 0o755, 0, 0), (path, 0o755, 0, 0)]
    directories += [(path / slot, SLOT_MODE, owner, group) for slot in slots]
    stale = [entry for entry in directories if directory_differs(*entry)]
    if not module.check_mode:
        try:
            for directory, mode, user, members in stale:
                directory.mkdir(parents=True, exist_ok=True)
                os.chown(directory, user, members)
                directory.chmod(mode)
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
            "before": f"active: {before}\n" + "".join(f"to do: {entry[0]}\n" for entry in stale),
            "after": f"active: {after}\n",
        },
    )


if __name__ == "__main__":
    main()
