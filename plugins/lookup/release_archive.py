"""Upstream release archives that an operator has put on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
name: release_archive
short_description: Finds upstream release archives in a directory and checks them
description:
  - Looks for one archive per program and architecture, by patterns of file names, on the
    controller.
  - When the directory has a file C(SHA256SUMS), each archive that is found must stand in it, and
    fit.
  - Reads every archive that it finds as a whole. Call it once and keep what it returns.
options:
  _terms:
    description: The directory. One that is not there holds no archive.
    type: path
    required: true
  patterns:
    description: File name by program, with C({arch}) for the architecture and C(*) for any text.
    type: dict
    required: true
  architectures:
    description: Architectures to look for, as the Docker Engine calls them.
    type: list
    elements: str
    default: [amd64, arm64]
"""

EXAMPLES = r"""
- name: See which release archives there are
  ansible.builtin.set_fact:
    found: "{{ lookup('release_archive', 'vendor', patterns={'loki': 'loki-linux-{arch}.zip'}) }}"
# found.archives.loki.amd64 is a path
"""

RETURN = r"""
_raw:
  description:
    - One dictionary. C(archives) has paths by program and architecture, C(digests) by program one
      digest of all its archives, C(problems) what is wrong with files that are there.
  type: list
  elements: dict
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

SUMS = "SHA256SUMS"


def expected_sums(directory: Path) -> dict[str, str] | None:
    """Digest by file name, as `sha256sum` writes them; None when there is no such file."""
    path = directory / SUMS
    if not path.is_file():
        return None
    lines = re.findall(r"^([0-9a-fA-F]{64}) [ *](?:\./)?(\S+)$", path.read_text(), re.MULTILINE)
    return {name: digest.lower() for digest, name in lines}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(directory: Path, patterns: dict[str, str], architectures: list[str]) -> dict[str, Any]:
    archives: dict[str, dict[str, str]] = {}
    digests: dict[str, str] = {}
    problems = []
    sums = expected_sums(directory)
    for program, pattern in patterns.items():
        for arch in architectures:
            found = sorted(directory.glob(pattern.replace("{arch}", arch)))
            if not found:
                continue
            if len(found) > 1:
                names = ", ".join(path.name for path in found)
                problems.append(f"there are several archives of {program} for {arch}: {names}")
            path, digest = found[-1], sha256(found[-1])
            if sums is not None and path.name not in sums:
                problems.append(f"{path.name} does not stand in {SUMS}")
            elif sums is not None and sums[path.name] != digest:
                problems.append(f"{path.name} is not what {SUMS} says, its SHA-256 is {digest}")
            archives.setdefault(program, {})[arch] = str(path)
            digests[program] = f"{digests.get(program, '')} {digest}".strip()
    return {"archives": archives, "digests": digests, "problems": problems}


class LookupModule(LookupBase):
    def run(
        self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        self.set_options(var_options=variables, direct=kwargs)
        options = (self.get_option("patterns"), self.get_option("architectures"))
        try:
            return [find(Path(term).resolve(), *options) for term in terms]
        except OSError as error:
            raise AnsibleError(f"A release archive is unreadable: {error}") from error
