"""A certificate, its private key and the local authority as files that are kept together.

Shared by the module certificate_pair and by preflight, which judges what is there.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.certificates import (
    Pair,
    UnusableError,
    describe,
    ends,
    fits,
    issued_by,
    load_chain,
    load_key,
    names_of,
    normal,
    permits,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAMES = ("fullchain.pem", "privkey.pem", "ca.pem")


class Store:
    """The directory with the pair that is live and the local authority."""

    def __init__(self, path: Path, owner: int, *, check_mode: bool, keeper: bool = False) -> None:
        self.path = path
        self.live = path / "live"
        self.authority = path / "ca"
        self.owner = owner
        self.keeper = owner if keeper else 0
        self.check_mode = check_mode
        self.notes: list[str] = []

    def own(self, path: Path, mode: int, owner: int) -> None:
        """Set owner and mode where they differ."""
        status = path.stat()
        found = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
        if found == (mode, owner, owner):
            return
        self.notes.append(f"{path.relative_to(self.path.parent)}: owner and mode repaired")
        if not self.check_mode:
            os.chown(path, owner, owner)
            path.chmod(mode)

    def prepare(self) -> None:
        """Make the directories; repair owners and modes."""
        for directory, mode, owner in (
            (self.path, 0o700, 0),
            (self.authority, 0o700, 0),
            (self.live, 0o755, self.keeper),
        ):
            if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
                raise UnusableError(f"{directory} is not a directory: move it away")
            if directory.exists():
                self.own(directory, mode, owner)
                continue
            self.notes.append(f"{directory.relative_to(self.path.parent)}: created")
            if not self.check_mode:
                directory.mkdir(parents=True)
                directory.chmod(mode)
                if owner:
                    os.chown(directory, owner, owner)
        for file, mode, owner in (
            (self.authority / "ca.key", 0o400, 0),
            (self.live / "privkey.pem", 0o400, self.owner),
        ):
            if file.is_file():
                self.own(file, mode, owner)

    def pair(self) -> Pair:
        """The pair that is live."""
        chain = self.live / "fullchain.pem"
        key = self.live / "privkey.pem"
        if not chain.is_file() or not key.is_file():
            raise UnusableError("there is none yet")
        return Pair(load_chain(chain.read_bytes()), load_key(key.read_bytes()))

    def ca(self) -> Pair:
        """The local authority."""
        certificate = self.authority / "ca.pem"
        key = self.authority / "ca.key"
        if not certificate.is_file() or not key.is_file():
            raise UnusableError("there is none yet")
        return Pair(load_chain(certificate.read_bytes()), load_key(key.read_bytes()))

    def installed(self, name: str) -> str | None:
        try:
            return (self.live / name).read_text()
        except (OSError, UnicodeDecodeError):
            return None

    def install(self, contents: dict[str, str]) -> None:
        """Make these contents the live pair, by one rename."""
        digest = hashlib.sha256("\0".join(contents.values()).encode()).hexdigest()[:12]
        # The same contents may be live already, or left half written by a run that was killed.
        names = (f"{digest}-{number}" if number else digest for number in itertools.count())
        name = next(name for name in names if not (self.live / name).exists())
        target = self.live / name
        target.mkdir(mode=0o755)
        target.chmod(0o755)
        for file, content in contents.items():
            private = file == "privkey.pem"
            descriptor = os.open(target / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
            with os.fdopen(descriptor, "w") as stream:
                os.fchmod(stream.fileno(), 0o400 if private else 0o444)
                owner = self.owner if private else 0
                os.fchown(stream.fileno(), owner, owner)
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        synchronise(target)
        current = self.live / "current"
        # Whoever is on the way through the link still finds the pair that it led to.
        keep = {name, current.readlink().name if current.is_symlink() else ""}
        link(current, name)
        for file in _NAMES:
            if file in contents:
                link(self.live / file, f"current/{file}")
            else:
                (self.live / file).unlink(missing_ok=True)
        synchronise(self.live)
        for other in self.live.iterdir():
            if other.is_dir() and not other.is_symlink() and other.name not in keep:
                shutil.rmtree(other)


def link(path: Path, target: str) -> None:
    """Point a symbolic link elsewhere in one step."""
    if path.is_symlink() and str(path.readlink()) == target:
        return
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)


def synchronise(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def authority_reasons(store: Store, names: list[str], now: datetime, days: int) -> list[str]:
    """Why the local authority cannot sign for these names."""
    try:
        ca = store.ca()
    except UnusableError as error:
        return [f"local authority: {error}"]
    found = []
    if not fits(ca.leaf, ca.key):
        found.append("local authority: its key does not belong to its certificate")
    if ends(ca.leaf) - now < timedelta(days=days):
        found.append(f"local authority: it ends on {ends(ca.leaf):%Y-%m-%d}")
    unsigned = [name for name in names if not permits(ca.leaf, name)]
    if unsigned:
        found.append(f"local authority: it may not sign for {', '.join(unsigned)}")
    return found


def reasons(store: Store, pair: Pair, params: Mapping[str, Any], now: datetime) -> list[str]:
    """Why a new certificate is due."""
    if params["keeper"]:
        fit = fits(pair.leaf, pair.key)
        return [] if fit else ["the private key does not belong to the certificate"]
    names: list[str] = params["names"]
    found: list[str] = pair.problems(names, now)
    left = ends(pair.leaf) - now
    if timedelta(0) < left < timedelta(days=params["renew_days"]):
        found.append(f"the certificate ends on {ends(pair.leaf):%Y-%m-%d}")
    if params["authority"]:
        surplus = sorted(set(names_of(pair.leaf)) - {normal(name) for name in names})
        if surplus:
            found.append(f"the certificate is also for {', '.join(surplus)}")
        try:
            if not issued_by(pair.leaf, store.ca().leaf):
                found.append("the certificate was not issued by the local authority")
        except UnusableError:
            pass  # authority_reasons says it
    if params["renew"]:
        found.append("a renewal was asked for")
    return found


def lines(certificate: dict[str, Any]) -> str:
    return "".join(
        f"{key}: {', '.join(value) if isinstance(value, list) else value}\n"
        for key, value in certificate.items()
        if key != "days_left"
    )


def keep(params: Mapping[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """Judge the pair and install the one that is given; the arguments of certificate_pair.

    Raises:
        UnusableError: what is given cannot be used, or what is there is in the way.
        OSError: the directory cannot be read or written.
    """
    store = Store(
        Path(params["path"]), params["owner"], check_mode=check_mode, keeper=params["keeper"]
    )
    now = datetime.now(UTC)
    store.prepare()
    before: dict[str, Any] = {}
    due: list[str] = []
    try:
        pair = store.pair()
        before = describe(pair.leaf)
        due = reasons(store, pair, params, now)
    except UnusableError as error:
        due = [f"certificate: {error}"]
    due_authority: list[str] = []
    # While a keeper has one served, it signs nothing.
    if params["authority"] and (due or not params["keeper"]):
        due_authority = authority_reasons(store, params["names"], now, params["renew_days"])
    due = due_authority + due

    after = before
    changed = bool(store.notes)
    notes = list(store.notes)
    if params["certificate"] is None:
        notes += [f"to be issued: {reason}" for reason in due]
    else:
        contents = {"fullchain.pem": params["certificate"], "privkey.pem": params["private_key"]}
        if params["authority"]:
            contents["ca.pem"] = (store.authority / "ca.pem").read_text()
        offered = Pair(
            load_chain(params["certificate"].encode()), load_key(params["private_key"].encode())
        )
        problems = offered.problems(params["names"], now)
        if problems:
            raise UnusableError(f"The certificate was not installed: {'; '.join(problems)}")
        after = describe(offered.leaf)
        if any(store.installed(name) != contents.get(name) for name in _NAMES):
            changed = True
            if not check_mode:
                store.install(contents)
        due = []
    result: dict[str, Any] = {
        "changed": changed,
        "reasons": due,
        "authority_reasons": due_authority,
        "certificate": after,
    }
    if changed or notes:
        result["diff"] = {
            "before_header": str(store.live),
            "after_header": str(store.live),
            "before": lines(before),
            "after": lines(after) + "".join(f"{note}\n" for note in notes),
        }
    return result
