"""Secrets as files of a private directory, one each.

Each content also stands in `.versions/<name>/<version>`, and never changes there. What signs in
with a secret mounts one version; a server mounts the directory, and accepts every version that is
in it. The name of one that is no longer to be accepted begins with a dot, until the servers know.

Shared by the modules secret_files, secret_turn and release_stage, and by preflight.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import string
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 43  # of 62 characters: as hard to guess as 32 random bytes
_SHORTEST = 8
_VERSION_KEY = ".version-key"
_VERSIONS = ".versions"
_TEMPORARY = ".secret_files."
_DIRECTORY_MODE = 0o700
# Below a directory that only root can enter; the servers in their containers are others.
_SHELF_MODE = 0o755
_FILE_MODE = 0o444
_KEY_MODE = 0o400


class RefusedError(Exception):
    """What was given, or what was found, cannot be used."""


def problems(names: list[str], values: dict[str, Any], known: list[str]) -> list[str]:
    """Everything that is wrong with the parameters, never quoting a value."""
    found = [
        f"'{name}' is not a name for a secret: small letters, digits and underscores"
        for name in names
        if not _NAME.fullmatch(name)
    ]
    for name, value in sorted(values.items()):
        if name not in names and name not in known:
            valid = ", ".join(sorted({*names, *known})) or "none"
            found.append(f"'{name}' is not the name of a secret here (there are: {valid})")
        elif not isinstance(value, str):
            found.append(f"'{name}' is not text: put the value in quotes")
        elif not value:
            found.append(f"'{name}' is empty: leave it out to have one generated")
        elif any(c.isspace() or not c.isprintable() for c in value):
            found.append(
                f"'{name}' holds a line break, NUL, blank or other character that does not print"
            )
        elif len(value) < _SHORTEST:
            found.append(f"'{name}' is shorter than {_SHORTEST} characters")
    return found


def read(path: Path) -> bytes | None:
    """The content of a regular file; None when there is nothing usable."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise RefusedError(f"{path} is not a regular file: move it away")
    # A crash of the host can leave an empty file behind where the file system did not keep order.
    return path.read_bytes() or None


def write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file's content in one step that survives a power failure."""
    descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """See that names are on the disk."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class Former(NamedTuple):
    """A version of a secret that another has followed."""

    name: str
    version: str
    path: Path


class SecretFiles:
    """The directory, brought to what is asked of it."""

    def __init__(self, directory: Path, *, check_mode: bool) -> None:
        self.directory = directory
        self.check_mode = check_mode
        self.actions: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.repaired: list[str] = []
        self.key: bytes | None = None

    @property
    def changed(self) -> bool:
        return bool(self.actions or self.repaired)

    def repair(self, path: Path, mode: int) -> None:
        """Set owner and mode where they differ."""
        status = path.lstat()
        wanted = (os.geteuid(), os.getegid())
        if (status.st_uid, status.st_gid) != wanted:
            self.repaired.append(
                f"{path.name}: owner repaired, was {status.st_uid}:{status.st_gid}"
            )
            if not self.check_mode:
                os.chown(path, *wanted, follow_symlinks=False)
        mode_found = stat.S_IMODE(status.st_mode)
        if mode_found != mode:
            self.repaired.append(f"{path.name}: mode repaired, was {mode_found:04o}")
            if not self.check_mode:
                path.chmod(mode)

    def prepare(self) -> None:
        """Make the directory, and the key that versions are made with."""
        try:
            status: os.stat_result | None = self.directory.lstat()
        except FileNotFoundError:
            status = None
        if status is None:
            self.repaired.append(f"{self.directory.name}: directory created")
            if self.check_mode:
                return
            self.directory.mkdir(parents=True, exist_ok=True)
            self.directory.chmod(_DIRECTORY_MODE)
        elif not stat.S_ISDIR(status.st_mode):
            raise RefusedError(f"{self.directory} is not a directory: move it away")
        else:
            self.repair(self.directory, _DIRECTORY_MODE)
        self.prepare_directory(self.directory / _VERSIONS, _DIRECTORY_MODE)
        path = self.directory / _VERSION_KEY
        self.key = read(path)
        if self.key is not None:
            self.repair(path, _KEY_MODE)
        elif not self.check_mode:
            self.key = secrets.token_bytes(32)
            write(path, self.key, _KEY_MODE)

    def prepare_directory(self, path: Path, mode: int) -> None:
        if path.is_dir():
            self.repair(path, mode)
        elif not self.check_mode:
            path.mkdir()
            path.chmod(mode)

    def ensure(self, name: str, value: str | None, *, rotate: bool = False) -> None:
        """Make one secret exist with the given content, or with any; with another, to rotate it."""
        path = self.directory / name
        content = read(path)
        if content is not None and value is None and not rotate:
            if content.strip() != content or b"\0" in content:
                raise RefusedError(
                    f"{path} begins or ends with a blank or line break, or holds NUL: write it "
                    f"without (printf %s), or delete it to have a new one generated"
                )
            self.repair(path, _FILE_MODE)
        elif value is not None and content == value.encode():
            self.repair(path, _FILE_MODE)
        else:
            if value is None:
                self.actions[name] = "rotated" if content and rotate else "generated"
                content = "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH)).encode()
            else:
                self.actions[name] = "replaced from secrets_values"
                content = value.encode()
            if not self.check_mode:
                write(path, content, _FILE_MODE)
        self.versions[name] = version = self.version(name, content)
        if not self.check_mode:
            shelf = self.directory / _VERSIONS / name
            self.prepare_directory(shelf, _SHELF_MODE)
            fixed = shelf / version
            if read(fixed) != content:
                write(fixed, content, _FILE_MODE)
            self.repair(fixed, _FILE_MODE)

    def former(self) -> list[Former]:
        """The versions of these secrets that are not the present ones, retired or not."""
        home = self.directory / _VERSIONS
        found = [
            Former(name, path.name, path)
            for name in sorted(self.versions)
            if (home / name).is_dir()
            for path in sorted((home / name).iterdir())
            if path.name != self.versions[name]
        ]
        # Where they lay before servers were to accept more than one.
        found += [
            Former(name.lstrip("."), version, path)
            for path in sorted(home.iterdir() if home.is_dir() else ())
            if path.is_file()
            for name, _, version in [path.name.rpartition(".")]
        ]
        return found

    def retire(self, in_use: str) -> list[Former]:
        """Hide what nothing uses from the servers; all that is hidden now.

        Args:
            in_use: text that names the versions with which something runs.
        """
        hidden = []
        for item in self.former():
            if item.path.name.startswith("."):
                hidden.append(item)
            elif item.version not in in_use:
                path = item.path.with_name(f".{item.path.name}")
                item.path.rename(path)
                sync_directory(path.parent)
                hidden.append(item._replace(path=path))
        return hidden

    def version(self, name: str, content: bytes) -> str:
        if self.key is None or (
            self.check_mode and self.actions.get(name) in {"generated", "rotated"}
        ):
            return "pending"
        text = b"login\0" + name.encode() + b"\0" + content
        return hmac.new(self.key, text, hashlib.sha256).hexdigest()[:12]

    def unused(self, names: list[str]) -> list[str]:
        """Secrets that nothing asks for; and what a killed run left behind goes."""
        if not self.directory.is_dir():
            return []
        found = []
        for path in sorted(self.directory.iterdir()):
            if path.name.startswith(_TEMPORARY):
                if not self.check_mode:
                    path.unlink(missing_ok=True)
            elif _NAME.fullmatch(path.name) and path.name not in names:
                found.append(path.name)
        return found

    def diff(self) -> dict[str, str]:
        after = [f"{name}: {action}" for name, action in sorted(self.actions.items())]
        after += self.repaired
        return {
            "before_header": str(self.directory),
            "after_header": str(self.directory),
            "before": "",
            "after": "".join(f"{line}\n" for line in after),
        }


def in_order(
    directory: Path, names: list[str], known: list[str], given: Mapping[str, str]
) -> SecretFiles | None:
    """The secrets as they are, if secret_files would change none of them.

    Args:
        directory: where they are.
        names: those that must exist.
        known: others that may be given.
        given: the SHA-256 of each value that takes a generated one's place, by name.

    Raises:
        RefusedError: something in the directory is in the way.
        OSError: it cannot be read.
    """
    if not given.keys() <= {*names, *known}:
        return None
    files = SecretFiles(directory, check_mode=True)
    files.prepare()
    for name in names:
        content = read(directory / name)
        if content is None:
            return None
        if name in given and hashlib.sha256(content).hexdigest() != given[name]:
            return None
        files.ensure(name, content.decode() if name in given else None)
        shelf = directory / _VERSIONS / name
        fixed = shelf / files.versions[name]
        if not shelf.is_dir() or read(fixed) != content:
            return None
        files.repair(shelf, _SHELF_MODE)
        files.repair(fixed, _FILE_MODE)
    return None if files.changed else files
