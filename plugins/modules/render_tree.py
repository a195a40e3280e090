"""Target side of render_tree; the action plugin of the same name renders on the controller."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: render_tree
short_description: Render a whole tree of templates in one module execution
version_added: "1.0.0"
author: compose-stack
description:
  - Renders every file of a directory of templates on the controller and brings the result to the
    target in one
    module execution, however many files there are.
  - Below O(dest) the tree is written to C(trees/<digest>/) and made live by replacing the symbolic
    link C(current)
    with one rename(2). Readers see the old tree or the new one and never a mixture, and an
    interrupted run leaves
    the old or the new tree.
  - The tree is whole. A file that is no longer rendered is gone, and a file, mode or owner changed
    by hand is restored.
  - Files that end in C(.j2) are rendered and lose that suffix, others are copied as they are.
    Names that start with
    an underscore are for templates to import or include and make no file of their own; C(.gitkeep)
    is left out.
  - Top-level directories are rendered before top-level files, which can use the variable
    C(render_tree_digests), a
    dictionary of each top-level directory's SHA-256, for instance as a label that makes compose
    recreate a service.
options:
  src:
    description:
      - Directory of templates on the controller, found as M(ansible.builtin.template) finds its
        files.
      - Templates can import and include from their own directory, from O(src) and from
        O(include_path).
    type: str
    default: templates
  dest:
    description: Directory on the target that this module manages. Missing parents are created.
    type: path
    required: true
  stage:
    description:
      - Write the tree to C(<stage>/current/) and leave O(dest) alone; M(activate_trees) makes it
        live later.
      - A stage is scratch space and is written in check mode too, so that all that was rendered
        can be validated
        together. It must not be in a place another user may have prepared.
    type: path
  live:
    description:
      - The digests of trees that are known to be live, by O(dest). When what was rendered has the
        digest of its O(dest), nothing is executed on the target and nothing is staged; O(keep),
        O(owner) and O(group) exclude that.
    type: dict
    default: {}
  keep:
    description:
      - Patterns of files, relative to the tree, to carry over from the live tree where it has
        them, with their
        content and mode, whether or not they are rendered.
      - An asterisk matches slashes too.
    type: list
    elements: str
    default: []
  exclude:
    description: Patterns of files, relative to the tree and without C(.j2), not to render.
    type: list
    elements: str
    default: []
  gather:
    description:
      - Further directories of templates on the controller, each by the path in the tree at which
        its files go, for instance what every role contributes to one configuration.
      - A directory that does not exist adds nothing.
    type: dict
    default: {}
  include_path:
    description:
      - Further directories to import templates from. Relative ones are looked for beside
        ansible.cfg, then beside the
        playbook.
      - The default is the variable C(render_tree_include_path), or C(files/templates) where that
        directory exists.
    type: list
    elements: str
  validate:
    description:
      - Commands, each a list of words, to run on the target before the tree goes live. C(%s)
        stands for the directory
        that holds the candidate as C(current).
      - They run only when the tree differs from the live one, in check mode too. When one fails,
        nothing live changes.
    type: list
    elements: list
    default: []
  validate_when:
    description: Whether the validation commands can run yet, for instance whether the image they
      need exists.
    type: bool
    default: true
  validate_timeout:
    description: Seconds one validation command may take.
    type: int
    default: 120
  mode:
    description: Mode of files, as an octal string. Who may read a file that is executable in
      O(src) may also execute it.
    type: raw
    default: "0644"
  directory_mode:
    description: Mode of directories, as an octal string.
    type: raw
    default: "0755"
  modes:
    description:
      - Other modes for paths that match a pattern, for instance C(bin/*) or C(private/). The last
        match wins.
      - A pattern that ends in a slash is for directories.
    type: dict
    default: {}
  owner:
    description: Name or number of the user everything belongs to; the user the module runs as by
      default.
    type: str
  group:
    description: Name or number of the group everything belongs to; the group the module runs as by
      default.
    type: str
  secrets:
    description:
      - Values to mask in the difference and in the output of validation commands. What stood in
        the live file where the
        new one has a secret is masked as well.
      - Values from Ansible Vault among the host's variables are masked without being listed.
    type: list
    elements: str
    default: []
  skip_empty:
    description: Make no file of a template that renders to nothing but white space.
    type: bool
    default: false
  trim_blocks:
    description: Remove the newline after a block, as Jinja has it.
    type: bool
    default: true
  lstrip_blocks:
    description: Remove the white space before a block, as Jinja has it.
    type: bool
    default: false
  keep_trees:
    description: How many trees to keep on the target, the live one among them.
    type: int
    default: 3
attributes:
  check_mode:
    description: Nothing is written but the stage, or a scratch directory for validation, which is
      removed.
    support: full
  diff_mode:
    description: Shows every file added, changed and removed, modes and owners included, with
      secrets masked.
    support: full
seealso:
  - module: activate_trees
"""

EXAMPLES = r"""
- name: Render the configuration and check it with the program that will read it
  render_tree:
    dest: /opt/stack/services/nginx
    secrets: ["{{ nginx_status_password }}"]
    validate:
      - [docker, run, --rm, -v, "%s:/etc/stack:ro", "nginx:1.28", nginx, -t, -c,
         /etc/stack/current/config/nginx.conf]

- name: Render to a scratch directory that activate_trees makes live together with others
  render_tree:
    dest: /opt/stack/services/redis
    stage: /var/tmp/stack.stage/services/redis
    modes:
      "bin/*": "0755"
"""

RETURN = r"""
digest:
  description: SHA-256 of the paths, modes and contents of the tree.
  returned: success
  type: str
digests:
  description: The same for each top-level directory.
  returned: success
  type: dict
changed_files:
  description: Paths added, changed or removed, compared with the live tree.
  returned: success
  type: list
  elements: str
tree:
  description: Directory of the tree that is live after the task, or null if there is none.
  returned: success
  type: str
validated:
  description: Whether validation commands have run.
  returned: success
  type: bool
note:
  description: Says that validation was skipped although the tree differs.
  returned: when O(validate_when) is false
  type: str
"""

ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    "src": {"type": "str", "default": "templates"},
    "dest": {"type": "path", "required": True},
    "stage": {"type": "path"},
    "live": {"type": "dict", "default": {}},
    "keep": {"type": "list", "elements": "str", "default": []},
    "exclude": {"type": "list", "elements": "str", "default": []},
    "gather": {"type": "dict", "default": {}},
    "include_path": {"type": "list", "elements": "str"},
    "validate": {"type": "list", "elements": "list", "default": []},
    "validate_when": {"type": "bool", "default": True},
    "validate_timeout": {"type": "int", "default": 120},
    "mode": {"type": "raw", "default": "0644"},
    "directory_mode": {"type": "raw", "default": "0755"},
    "modes": {"type": "dict", "default": {}},
    "owner": {"type": "str"},
    "group": {"type": "str"},
    "secrets": {"type": "list", "elements": "str", "default": [], "no_log": True},
    "skip_empty": {"type": "bool", "default": False},
    "trim_blocks": {"type": "bool", "default": True},
    "lstrip_blocks": {"type": "bool", "default": False},
    "keep_trees": {"type": "int", "default": 3},
    "_payload": {"type": "str", "no_log": True},
}


def main() -> None:
    """Entry point of Ansible."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    # Not at the top: a linter that imports this file to read its arguments has no such module.
    from ansible.module_utils import trees

    if not module.params["_payload"]:
        module.fail_json(
            msg="render_tree needs its action plugin: set action_plugins in ansible.cfg"
        )
    try:
        result = trees.render(module.params, module.check_mode, module._diff)  # noqa: SLF001
    except trees.TreeError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
