"""Make staged trees live together, or go back to the ones before."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: activate_trees
short_description: Make every tree that render_tree staged live
version_added: "1.0.0"
author: compose-stack
description:
  - Takes the trees that M(render_tree) wrote below one stage, C(<stage>/<name>/current/), and
    makes each of them live
    below O(dest) as C(<dest>/<name>/trees/<digest>/) with the symbolic link
    C(<dest>/<name>/current). All trees are
    written before the first link is swapped.
  - Managed directories below O(dest) that are not staged go out of use. They are kept in
    C(<dest>/.removed/) until the
    next activation, so that O(restore) can bring them back. Directories without C(trees/) are left
    alone.
  - With O(restore) it points every directory back to the tree it had before.
options:
  dest:
    description: Directory that holds one managed directory for each name.
    type: path
    required: true
  stage:
    description: Directory that holds one staged directory for each name. It is removed at the end,
      in check mode too.
    type: path
  stage_root:
    description: A directory that holds O(stage), to be removed at the end instead of it.
    type: path
  names:
    description:
      - The names that must be staged; the default is all that are. State them, because an
        interrupted run may have left
        the stage of a name that is no longer wanted. Others in the stage are ignored.
    type: list
    elements: str
  links:
    description: Symbolic links to have in O(links_directory), name and target. A file of such a
      name is never replaced.
    type: dict
    default: {}
  links_directory:
    description: Where the links are; O(dest) by default.
    type: path
  directory_mode:
    description: Mode of the directories that are created around the trees, as an octal string.
    type: raw
    default: "0755"
  keep_trees:
    description: How many trees to keep for each name. The live one and the one before it always
      stay.
    type: int
    default: 3
  restore:
    description: What an activation returned as RV(previous). Excludes O(stage).
    type: dict
attributes:
  check_mode:
    description: Says what would change and removes the stage, which is scratch space.
    support: full
  diff_mode:
    description: Shows the tree of each name before and after.
    support: full
seealso:
  - module: render_tree
"""

EXAMPLES = r"""
- name: Make everything that was rendered live
  activate_trees:
    stage: /var/tmp/stack.stage/services
    stage_root: /var/tmp/stack.stage
    names: [nginx, redis]
    dest: /opt/stack/services
    links_directory: /opt/stack
    links:
      compose.yml: services/stack/current/compose.yml
  register: activation

- name: Go back
  activate_trees:
    dest: /opt/stack/services
    restore: "{{ activation.previous }}"
"""

RETURN = r"""
activated:
  description: Names whose tree was replaced.
  returned: with O(stage)
  type: list
  elements: str
removed:
  description: Names that went out of use.
  returned: success
  type: list
  elements: str
links:
  description: Names of the links that were made or changed.
  returned: with O(stage)
  type: list
  elements: str
previous:
  description: The tree each name had before, null for none.
  returned: success
  type: dict
  sample: {redis: 3f2a91c07d55, nginx: null}
digests:
  description: SHA-256 of each staged tree.
  returned: with O(stage)
  type: dict
restored:
  description: Names that were pointed back.
  returned: with O(restore)
  type: list
  elements: str
unrestored:
  description: Names that could not be pointed back, and why.
  returned: with O(restore)
  type: dict
"""

ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    "dest": {"type": "path", "required": True},
    "stage": {"type": "path"},
    "stage_root": {"type": "path"},
    "names": {"type": "list", "elements": "str"},
    "links": {"type": "dict", "default": {}},
    "links_directory": {"type": "path"},
    "directory_mode": {"type": "raw", "default": "0755"},
    "keep_trees": {"type": "int", "default": 3},
    "restore": {"type": "dict"},
}


def main() -> None:
    """Entry point of Ansible."""
    module = AnsibleModule(
        argument_spec=ARGUMENT_SPEC,
        supports_check_mode=True,
        mutually_exclusive=[("stage", "restore")],
        required_one_of=[("stage", "restore")],
    )
    # Not at the top: a linter that imports this file to read its arguments has no such module.
    from ansible.module_utils import trees

    try:
        if module.params["restore"] is not None:
            result = trees.restore(module.params, module.check_mode)
        else:
            result = trees.activate(module.params, module.check_mode)
    except trees.TreeError as error:
        module.fail_json(msg=str(error))
    for name, reason in result.get("unrestored", {}).items():
        module.warn(f"{name} was not restored: {reason}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
