#!/usr/bin/python
"""Ansible module: keep one file per secret in a private directory."""

from __future__ import annotations

DOCUMENTATION = r"""
module: secret_files
short_description: Keep one file per secret in a private directory
description:
  - Generates each named secret once, on the target, and leaves it alone afterwards.
  - A value given in O(values), for instance from Ansible Vault, takes the generated one's place.
  - Handles every secret in one module execution, and never returns or shows a value.
  - Files are written to a temporary name, synchronised to disk and renamed, so that a reader or a
    power failure meets the old content or the new one.
  - Each content also stands in a file of its own, C(.versions/<name>/<version>), which never
    changes. What is to keep the secret it was made with, such as a container whose replacement may
    still fail, mounts that one; a server mounts the directory, and accepts all that are in it.
    M(secret_turn) takes former ones away.
options:
  path:
    description:
      - The directory. It is created with mode 0700; its files have mode 0444, so that a container
        they are mounted into can read them whatever its user, and no other user of the host can.
    type: path
    required: true
  names:
    description: Secrets that must exist. Small letters, digits and underscores.
    type: list
    elements: str
    required: true
  values:
    description: Values that take the place of generated ones, by name.
    type: dict
    default: {}
  known:
    description:
      - Names that O(values) may hold beside O(names) without being written, such as those of
        services that are switched off.
    type: list
    elements: str
    default: []
  rotate:
    description: Those of O(names) that are to be generated anew. None of them may be in O(values).
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details: Names what would be generated or replaced; never shows a value.
"""

EXAMPLES = r"""
- name: Keep the database's passwords
  secret_files:
    path: /opt/compose-stack/secrets
    names: [postgres_owner_password, postgres_app_password]
    values: "{{ vaulted_secrets }}"
"""

RETURN = r"""
versions:
  description:
    - An opaque version of each secret in O(names). It changes when the content changes, and tells
      nothing about it. V(pending) in check mode for a secret that does not exist yet.
  type: dict
  returned: success
  sample: {postgres_app_password: 4f1c09a7be52}
actions:
  description: What was done to each secret that was touched, by name.
  type: dict
  returned: success
  sample: {postgres_app_password: generated}
former:
  description: Secrets of which there is an earlier version, too.
  type: list
  elements: str
  returned: success
unused:
  description: Secrets found in the directory that O(names) does not hold. They are left alone.
  type: list
  elements: str
  returned: success
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.secret_store import RefusedError, SecretFiles, problems


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "required": True, "no_log": False},
            "values": {"type": "dict", "default": {}, "no_log": True},
            "known": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "rotate": {"type": "list", "elements": "str", "default": [], "no_log": False},
        },
        supports_check_mode=True,
    )
    names: list[str] = module.params["names"]
    values: dict[str, Any] = module.params["values"]
    found = problems(names, values, module.params["known"])
    if found:
        module.fail_json(msg="secrets_values: " + "; ".join(found) + ".")
    rotate: list[str] = module.params["rotate"]
    wrong = sorted({*rotate} - {*names} | {*rotate} & values.keys())
    if wrong:
        module.fail_json(msg=f"Cannot generate {', '.join(wrong)}: unknown, or in secrets_values.")
    files = SecretFiles(Path(module.params["path"]), check_mode=module.check_mode)
    try:
        files.prepare()
        for name in names:
            files.ensure(name, values.get(name), rotate=name in rotate)
        unused = files.unused(names)
    except RefusedError as refusal:
        module.fail_json(msg=f"{refusal}.")
    except OSError as error:
        module.fail_json(msg=f"Cannot keep secrets in {files.directory}: {error}.")
    module.exit_json(
        changed=files.changed,
        versions=files.versions,
        actions=files.actions,
        unused=unused,
        former=sorted({item.name for item in files.former()}),
        **({"diff": files.diff()} if files.changed else {}),
    )


if __name__ == "__main__":
    main()
