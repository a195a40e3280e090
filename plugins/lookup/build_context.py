"""Digests and archives of image build contexts, made on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
name: build_context
short_description: Digest or archive of the files an image is built from
description:
  - Reads directories as C(docker build) would, C(.dockerignore) included, on the controller.
  - By default returns a digest of names, contents and executable bits, for use as an image tag - an
    image with that tag is up to date and needs no build.
  - With O(archive) returns the same files as a base64 encoded C(tar.gz), small enough to travel as
    the standard input of one command.
  - Owners, times and the umask of the checkout have no influence on either.
options:
  _terms:
    description: Context directories. In an archive each one is found under its own base name.
    type: list
    elements: path
    required: true
  inputs:
    description: Further inputs of the build that the digest covers, such as the parent image.
    type: list
    elements: str
    default: []
  each:
    description:
      - Return one digest for each context.
    type: bool
    default: false
  own_inputs:
    description: With O(each), one more input of the contexts with these base names.
    type: dict
    default: {}
  archive:
    description: Return an archive instead of a digest.
    type: bool
    default: false
  files:
    description: Contents by name of further files that the archive shall hold at its top.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Name the image after what it is made of
  ansible.builtin.set_fact:
    redis_tag: "{{ lookup('build_context', 'files/images/redis', inputs=[base_ref]) }}"

- name: Send the context and build it
  ansible.builtin.command:
    argv: [sh, -c, 'base64 -d | tar -xz && docker build redis']
    chdir: /var/tmp/context
    stdin: "{{ lookup('build_context', 'files/images/redis', archive=true) }}"
  changed_when: true
"""

RETURN = r"""
_raw:
  description: Twelve hexadecimal digits, or the encoded archive.
  type: list
  elements: str
"""

import base64
import gzip
import hashlib
import io
import re
import tarfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

DIGEST_LENGTH = 12


class IgnoreRules:
    """The patterns of a .dockerignore file: the last one that matches decides."""

    def __init__(self, text: str) -> None:
        self._rules: list[tuple[bool, re.Pattern[str]]] = []
        for line in text.splitlines():
            pattern = line.strip()
            if not pattern or pattern.startswith("#"):
                continue
            ignore = not pattern.startswith("!")
            self._rules.append((ignore, self._compile(pattern.lstrip("!").strip("/"))))

    @staticmethod
    def _compile(pattern: str) -> re.Pattern[str]:
        expression = ""
        position = 0
        while position < len(pattern):
            rest = pattern[position:]
            if rest.startswith("**/"):
                expression += "(?:.*/)?"
                position += 3
            elif rest.startswith("**"):
                expression += ".*"
                position += 2
            elif bracket := re.match(r"\[[^]]+\]", rest):
                expression += bracket.group()
                position += bracket.end()
            else:
                expression += {"*": "[^/]*", "?": "[^/]"}.get(rest[0], re.escape(rest[0]))
                position += 1
        # A pattern that names a directory covers all that is in it.
        return re.compile(f"{expression}(?:/.*)?")

    def ignores(self, name: str) -> bool:
        verdict = False
        for ignore, pattern in self._rules:
            if pattern.fullmatch(name):
                verdict = ignore
        return verdict


def context_files(directory: Path) -> list[tuple[str, Path]]:
    """Name and path of every file that a build in this directory sees, sorted by name."""
    if not directory.is_dir():
        raise AnsibleError(
            f"{directory}: the build context is missing. Is the checkout complete? (git status)"
        )
    rules_file = directory / ".dockerignore"
    rules = IgnoreRules(rules_file.read_text() if rules_file.is_file() else "")
    found = (
        (path.relative_to(directory).as_posix(), path)
        for path in directory.rglob("*")
        if path.is_symlink() or path.is_file()
    )
    # Docker sends the Dockerfile whatever .dockerignore says.
    return sorted(
        (name, path) for name, path in found if name == "Dockerfile" or not rules.ignores(name)
    )


def content_of(path: Path) -> tuple[str, bytes]:
    """Kind (link, executable or file) and content."""
    if path.is_symlink():
        return "link", str(path.readlink()).encode()
    return ("executable" if path.stat().st_mode & 0o100 else "file"), path.read_bytes()


def digest(directories: list[Path], inputs: list[str]) -> str:
    total = hashlib.sha256()

    def add(*fields: bytes) -> None:
        for field in fields:
            total.update(b"%d:%s," % (len(field), field))

    for directory in directories:
        for name, path in context_files(directory):
            kind, content = content_of(path)
            add(name.encode(), kind.encode(), content)
    add(*(text.encode() for text in inputs))
    return total.hexdigest()[:DIGEST_LENGTH]


def archive(directories: list[Path], files: dict[str, str]) -> str:
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as tar,
    ):
        for directory in directories:
            for name, path in context_files(directory):
                kind, content = content_of(path)
                member = tarfile.TarInfo(f"{directory.name}/{name}")
                if kind == "link":
                    member.type, member.linkname = tarfile.SYMTYPE, content.decode()
                    tar.addfile(member)
                    continue
                member.mode = 0o755 if kind == "executable" else 0o644
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return base64.b64encode(buffer.getvalue()).decode()


class LookupModule(LookupBase):
    def run(
        self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[str]:
        self.set_options(var_options=variables, direct=kwargs)
        directories = [Path(term).resolve() for term in terms]
        try:
            if self.get_option("archive"):
                return [archive(directories, self.get_option("files"))]
            inputs: list[str] = self.get_option("inputs")
            if self.get_option("each"):
                own: dict[str, str] = self.get_option("own_inputs")
                return [
                    digest([item], [*inputs, *([own[item.name]] if item.name in own else [])])
                    for item in directories
                ]
            return [digest(directories, inputs)]
        except OSError as error:
            raise AnsibleError(f"The build context is unreadable: {error}") from error
