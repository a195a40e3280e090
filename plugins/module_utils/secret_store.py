"""Secrets as files of a private directory, one each.

Shared by the module secret_files and by preflight, which looks whether they are in order.
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
from typing import TYPE_CHECKING, Any

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
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


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
        versions = self.directory / _VERSIONS
        if versions.is_dir():
            self.repair(versions, _DIRECTORY_MODE)
        elif not self.check_mode:
            versions.mkdir(mode=_DIRECTORY_MODE)
        path = self.directory / _VERSION_KEY
        self.key = read(path)
        if self.key is not None:
            self.repair(path, _KEY_MODE)
        elif not self.check_mode:
            self.key = secrets.token_bytes(32)
            write(path, self.key, _KEY_MODE)

    def ensure(self, name: str, value: str | None) -> None:
        """Make one secret exist with the given content, or with any."""
        path = self.directory / name
        content = read(path)
        if content is not None and value is None:
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
                self.actions[name] = "generated"
                content = "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH)).encode()
            else:
                self.actions[name] = "replaced from secrets_values"
                content = value.encode()
            if not self.check_mode:
                write(path, content, _FILE_MODE)
        self.versions[name] = version = self.version(name, content)
        if not self.check_mode:
            fixed = self.directory / _VERSIONS / f"{name}.{version}"
            if read(fixed) != content:
                write(fixed, content, _FILE_MODE)
            self.repair(fixed, _FILE_MODE)

    def prune(self, referenced: list[str]) -> None:
        """Remove the versions that are neither the present ones nor in use."""
        if self.check_mode:
            return
        in_use = "".join(
            file.read_text() for pattern in referenced for file in Path("/").glob(pattern[1:])
        )
        for path in (self.directory / _VERSIONS).iterdir():
            name, _, version = path.name.rpartition(".")
            # A service that is switched off takes its secret up again when it comes back.
            stale = name in self.versions and version != self.versions[name]
            if (stale and path.name not in in_use) or path.name.startswith(_TEMPORARY):
                path.unlink()

    def version(self, name: str, content: bytes) -> str:
        if self.key is None or (self.check_mode and self.actions.get(name) == "generated"):
            return "pending"
        return hmac.new(self.key, name.encode() + b"\0" + content, hashlib.sha256).hexdigest()[:12]

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
        fixed = directory / _VERSIONS / f"{name}.{files.versions[name]}"
        if read(fixed) != content:
            return None
        files.repair(fixed, _FILE_MODE)
    return None if files.changed else files
