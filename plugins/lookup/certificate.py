"""Ansible lookup: check a certificate and its key on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
name: certificate
short_description: Check a certificate and its private key on the controller
description:
  - Reads a certificate file (PEM, the server's own certificate first) and its private key, checks
    that they parse, belong together, are valid now, form a chain in order and cover every name, and
    returns what it found. Nothing runs on a target.
  - Files encrypted with Ansible Vault are read like others.
options:
  _terms:
    description: Path of the certificate file, then path of the private key.
    type: list
    elements: str
    required: true
  names:
    description: DNS names and IP addresses that the certificate must cover.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Refuse a certificate that clients would refuse
  ansible.builtin.assert:
    that: checked.problems == []
    fail_msg: "{{ checked.problems | join('; ') }}"
  vars:
    checked: "{{ lookup('certificate', 'www.pem', 'www.key', names=['www.example.org']) }}"
"""

RETURN = r"""
_list:
  description:
    - One dictionary. C(problems) lists what is wrong, in words; C(certificate) describes the
      certificate (subject, issuer, names, not_before, not_after, days_left, fingerprint,
      ocsp_responder) and is empty when it cannot be parsed.
  type: list
  elements: dict
"""

import importlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

# Ansible ships a project's module_utils to targets, but does not make them importable here.
_MODULE_UTILS = str(Path(__file__).resolve().parents[1] / "module_utils")
if _MODULE_UTILS not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(_MODULE_UTILS)
certificates = importlib.import_module("ansible.module_utils.certificates")


class LookupModule(LookupBase):
    def run(
        self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        self.set_options(var_options=variables, direct=kwargs)
        if len(terms) != 2:
            raise AnsibleError("the certificate lookup takes two paths: certificate, private key")
        problems: list[str] = []
        description: dict[str, Any] = {}
        chain = key = None
        for path, load in zip(terms, (certificates.load_chain, certificates.load_key), strict=True):
            try:
                loaded: Any = load(self._read(path, variables))
            except (certificates.UnusableError, AnsibleError) as error:
                problems.append(f"{path} {error}")
                continue
            if load is certificates.load_chain:
                chain = loaded
            else:
                key = loaded
        if chain:
            description = certificates.describe(chain[0])
        if chain and key:
            names: list[str] = self.get_option("names")
            problems += certificates.Pair(chain, key).problems(names, datetime.now(UTC))
        return [{"problems": problems, "certificate": description}]

    def _read(self, path: str, variables: dict[str, Any] | None) -> bytes:
        if not path:
            raise certificates.UnusableError(
                "(no file named): a certificate and its key are needed"
            )
        found = self.find_file_in_search_path(variables, "files", path, ignore_missing=True)
        if not found:
            raise certificates.UnusableError("does not exist on the controller")
        try:
            content: str = self._loader.get_text_file_contents(found)
        except Exception as error:  # unreadable, not decryptable or not text
            cause = error.__cause__ or error
            raise certificates.UnusableError(
                f"cannot be read on the controller ({cause})"
            ) from error
        return content.encode(errors="surrogateescape")  # how Ansible reads what is not text
