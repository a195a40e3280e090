"""List the releases that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: release_list
short_description: List the releases that are kept
version_added: "1.0.0"
author: compose-stack
description:
  - Reads the records that M(release_record) has kept. One that was damaged is named, and hides none
    of the others.
options:
  path:
    description: Directory that the releases are kept in.
    type: path
    required: true
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: List the releases
  release_list:
    path: /opt/stack/state/releases
"""

RETURN = r"""
releases:
  description: Their records, the newest first.
  returned: success
  type: list
  elements: dict
damaged:
  description: C(number), C(path) and C(fault) of each record that cannot be read, the newest first.
  returned: success
  type: list
  elements: dict
latest:
  description: Number of the last release, whether its record can be read or not; 0 without one.
  returned: success
  type: int
"""

ARGUMENT_SPEC: dict[str, dict[str, Any]] = {"path": {"type": "path", "required": True}}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    # Not at the top: a linter that imports this file to read its arguments has no such module.
    from ansible.module_utils import releases

    path = Path(module.params["path"])
    try:
        kept = releases.numbers(path)[::-1]
    except OSError as error:
        module.fail_json(msg=f"Cannot list the releases: {error.strerror} ({error.filename}).")
    found, damaged = releases.survey(path, kept)
    latest = kept[0] if kept else 0
    module.exit_json(changed=False, releases=found, damaged=damaged, latest=latest)


if __name__ == "__main__":
    main()
