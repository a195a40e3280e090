"""What a bundle of images holds, and whether it is whole."""

from __future__ import annotations

DOCUMENTATION = r"""
name: image_archive
short_description: Images, architecture and integrity of a C(docker save) archive
description:
  - Reads an archive made by C(docker save) of Docker 25 or later on the controller, without
    unpacking it.
  - Truncation and missing layers show at once. With O(verify) every layer and configuration is
    hashed and compared with its digest, a few seconds for each gigabyte.
options:
  _terms:
    description: Paths of the archives, relative ones to the working directory.
    type: list
    elements: path
    required: true
  verify:
    description: Compare contents with their digests.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show what a bundle holds
  ansible.builtin.debug:
    msg: "{{ lookup('image_archive', 'dist/compose-stack-images.tar').references }}"
"""

RETURN = r"""
_raw:
  description: One dictionary for each archive.
  type: list
  elements: dict
  contains:
    path:
      description: Absolute path.
      type: str
    size:
      description: Size in bytes.
      type: int
    references:
      description: Every reference in the archive.
      type: list
      elements: str
    names:
      description: Reference by the last part of the repository's name, such as C(nginx).
      type: dict
    architectures:
      description: Architectures the images are made for, as Docker names them.
      type: list
      elements: str
"""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import IO, Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

REMEDY = (
    "Copy it again and compare it with the .sha256 file beside it, or make it anew: make bundle"
)
BLOBS = "blobs/sha256/"
CHUNK = 1 << 20


class Archive:
    """An open archive; every method raises AnsibleError when it is damaged."""

    def __init__(self, path: Path, tar: tarfile.TarFile) -> None:
        self._path = path
        self._tar = tar
        self._members = {member.name: member for member in tar.getmembers()}

    def _broken(self, why: str) -> AnsibleError:
        return AnsibleError(f"{self._path}: {why}. {REMEDY}")

    def _open(self, name: str) -> IO[bytes]:
        member = self._members.get(name)
        content = self._tar.extractfile(member) if member else None
        if content is None:
            raise self._broken(f"{name} is missing, so this is no whole archive of `docker save`")
        return content

    def _read_json(self, name: str) -> Any:
        try:
            return json.load(self._open(name))
        except ValueError as error:
            raise self._broken(f"{name} is damaged ({error})") from error

    def describe(self) -> dict[str, Any]:
        references: list[str] = []
        architectures: set[str] = set()
        for image in self._read_json("manifest.json"):
            for layer in image["Layers"]:
                self._open(layer)
            references.extend(image["RepoTags"] or [])
            architectures.add(self._read_json(image["Config"])["architecture"])
        return {
            "path": str(self._path),
            "size": self._path.stat().st_size,
            "references": sorted(references),
            "names": {
                reference.rpartition(":")[0].rpartition("/")[2]: reference
                for reference in references
            },
            "architectures": sorted(architectures),
        }

    def verify(self) -> None:
        for name, member in self._members.items():
            if not (name.startswith(BLOBS) and member.isfile()):
                continue
            total = hashlib.sha256()
            content = self._open(name)
            while chunk := content.read(CHUNK):
                total.update(chunk)
            if total.hexdigest() != name.removeprefix(BLOBS):
                raise self._broken(f"{name} does not have the content its name promises")


def inspect(path: Path, *, verify: bool) -> dict[str, Any]:
    try:
        with tarfile.open(path, mode="r:") as tar:
            archive = Archive(path, tar)
            description = archive.describe()
            if verify:
                archive.verify()
            return description
    except FileNotFoundError as error:
        raise AnsibleError(
            f"{path}: there is no such file on this machine. Make it with `make bundle` where"
            " images can be built or pulled, copy it here, and name it in images_archive."
        ) from error
    except (tarfile.TarError, EOFError) as error:
        raise AnsibleError(f"{path}: no whole tar archive ({error}). {REMEDY}") from error
    except OSError as error:
        raise AnsibleError(f"{path}: unreadable ({error}).") from error
    except (KeyError, TypeError) as error:
        raise AnsibleError(f"{path}: no archive of `docker save` ({error!r}). {REMEDY}") from error


class LookupModule(LookupBase):
    def run(
        self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        self.set_options(var_options=variables, direct=kwargs)
        verify = bool(self.get_option("verify"))
        return [inspect(Path(term).expanduser().resolve(), verify=verify) for term in terms]
