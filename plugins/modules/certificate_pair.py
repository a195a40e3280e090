#!/usr/bin/python
"""Ansible module: keep a certificate and its key as one thing, and judge them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: certificate_pair
short_description: Keep a certificate and its private key together, and judge them
description:
  - Keeps a directory C(live) whose C(fullchain.pem) and C(privkey.pem) (and C(ca.pem), if given)
    are replaced together, by renaming one symbolic link. A server that reads them while they change
    gets the old pair or the new one. C(live) itself never changes its inode, so that it can be
    mounted into a container.
  - Without O(certificate) it judges what is there and says in RV(reasons) why a new certificate is
    due. It is the one execution that a run needs when nothing is to be done.
  - Needs the Python library cryptography (38 or later) on the target. Check mode does without,
    and says that a certificate is due.
options:
  path:
    description: Directory, mode 0700, that holds C(live), C(ca) and what a keeper remembers.
    type: path
    required: true
  names:
    description: DNS names and IP addresses that the certificate must be for.
    type: list
    elements: str
    required: true
  owner:
    description: Numeric user id that may read the private key.
    type: int
    default: 0
  renew_days:
    description: A certificate is due when fewer days than these are left to it.
    type: int
    default: 30
  authority:
    description:
      - Whether the certificate must come from the local certificate authority in C(ca/ca.pem) and
        C(ca/ca.key), which is judged too, and be for O(names) and no others.
    type: bool
    default: false
  keeper:
    description:
      - Whether O(owner) replaces the pair by itself, in C(live), which it owns then. What is there
        is its own to judge, so that a certificate is due only when none is there to be served.
    type: bool
    default: false
  renew:
    description: Whether a new certificate is due in any case.
    type: bool
    default: false
  certificate:
    description: Certificate and chain to install, PEM.
    type: str
  private_key:
    description: Private key to install, PEM.
    type: str
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details: Describes the certificates; never shows a key.
"""

EXAMPLES = r"""
- name: Install a certificate
  certificate_pair:
    path: /opt/compose-stack/tls
    names: [www.example.org]
    owner: 101
    certificate: "{{ lookup('file', 'www.pem') }}"
    private_key: "{{ lookup('file', 'www.key') }}"
"""

RETURN = r"""
reasons:
  description: Why a new certificate is due; empty when none is, or one was installed.
  type: list
  elements: str
  returned: success
authority_reasons:
  description: Why a new certificate authority is due.
  type: list
  elements: str
  returned: success
certificate:
  description:
    - The certificate that is in place now (under check mode, that would be). Empty when none is.
      subject, issuer, names, not_before, not_after, days_left, fingerprint, ocsp_responder.
  type: dict
  returned: success
"""

import traceback

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from ansible.module_utils.certificate_store import UnusableError, keep
except ImportError:
    LIBRARY_ERROR: str | None = traceback.format_exc()
else:
    LIBRARY_ERROR = None


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "owner": {"type": "int", "default": 0},
            "renew_days": {"type": "int", "default": 30},
            "authority": {"type": "bool", "default": False},
            "keeper": {"type": "bool", "default": False},
            "renew": {"type": "bool", "default": False},
            "certificate": {"type": "str"},
            "private_key": {"type": "str", "no_log": True},
        },
        required_together=[("certificate", "private_key")],
        supports_check_mode=True,
    )
    if LIBRARY_ERROR is not None:
        if module.check_mode:
            # A real run installs it with the other prerequisites before it comes here.
            reason = "the Python library cryptography is yet to be installed"
            module.exit_json(changed=True, reasons=[reason], authority_reasons=[], certificate={})
        module.fail_json(msg=missing_required_lib("cryptography >= 38"), exception=LIBRARY_ERROR)
    try:
        result = keep(module.params, check_mode=module.check_mode)
    except UnusableError as error:
        module.fail_json(msg=f"{error}.")
    except OSError as error:
        module.fail_json(msg=f"Cannot keep certificates in {module.params['path']}: {error}.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
