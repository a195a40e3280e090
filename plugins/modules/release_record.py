"""Keep what runs now as a release."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: release_record
short_description: Keep what runs now as a release
version_added: "1.0.0"
author: compose-stack
description:
  - Copies the live trees of M(activate_trees) into a numbered directory, with a record of whence,
    when and why in C(release.json). A release is written whole or not at all, and never changed.
  - Removes the oldest releases, and their images unless another release or a container needs them.
options:
  path:
    description: Directory that the releases are kept in.
    type: path
    required: true
  services:
    description: Directory that the trees are live in.
    type: path
    required: true
  names:
    description: The trees that belong to the release.
    type: list
    elements: str
    required: true
  facts:
    description: What else the record shall say. C(images) names the image of each service.
    type: dict
    required: true
  schema:
    description: Command that prints the revision of the database's schema.
    type: list
    elements: str
    default: []
  keep:
    description: How many releases to keep, at least two.
    type: int
    default: 10
attributes:
  check_mode:
    support: none
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: Keep what runs now
  release_record:
    path: /opt/stack/state/releases
    services: /opt/stack/services
    names: [nginx, api, stack]
    facts: {why: a faster search, who: ada}
"""

RETURN = r"""
number:
  description: The release's number.
  returned: always
  type: int
removed:
  description: Images that were removed.
  returned: always
  type: list
  elements: str
"""

ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    "path": {"type": "path", "required": True},
    "services": {"type": "path", "required": True},
    "names": {"type": "list", "elements": "str", "required": True},
    "facts": {"type": "dict", "required": True},
    "schema": {"type": "list", "elements": "str", "default": []},
    "keep": {"type": "int", "default": 10},
}


def output(*argv: str) -> str:
    """What a command printed; empty when it failed."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def images(records: list[dict[str, Any]]) -> set[str]:
    """What the releases' services run from."""
    return {image for record in records for image in record.get("images", {}).values()}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=False)
    # Not at the top: a linter that imports this file to read its arguments has no such module.
    from ansible.module_utils import releases, trees

    params = module.params
    path, services = Path(params["path"]), Path(params["services"])
    facts = {**params["facts"], "schema": output(*params["schema"]) if params["schema"] else ""}
    try:
        number = releases.record(path, services, params["names"], facts)
        gone = releases.prune(path, params["keep"])
        kept = releases.readable(path, releases.numbers(path))
    except trees.TreeError as error:
        module.fail_json(msg=str(error))
    unneeded = images(gone) - images(kept)
    removed = [name for name in sorted(unneeded) if output("docker", "image", "rm", name)]
    module.exit_json(changed=True, number=number, removed=removed)


if __name__ == "__main__":
    main()
