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
    description: Directory, mode 0700, that holds C(live), C(ca) and nothing else of value.
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

import hashlib
import itertools
import os
import shutil
import stat
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
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
except ImportError:
    LIBRARY_ERROR: str | None = traceback.format_exc()
else:
    LIBRARY_ERROR = None

_NAMES = ("fullchain.pem", "privkey.pem", "ca.pem")


class Store:
    """The directory with the pair that is live and the local authority."""

    def __init__(self, path: Path, owner: int, *, check_mode: bool) -> None:
        self.path = path
        self.live = path / "live"
        self.authority = path / "ca"
        self.owner = owner
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
        for directory, mode in ((self.path, 0o700), (self.authority, 0o700), (self.live, 0o755)):
            if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
                raise UnusableError(f"{directory} is not a directory: move it away")
            if directory.exists():
                self.own(directory, mode, 0)
                continue
            self.notes.append(f"{directory.relative_to(self.path.parent)}: created")
            if not self.check_mode:
                directory.mkdir(parents=True)
                directory.chmod(mode)
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


def reasons(store: Store, pair: Pair, params: dict[str, Any], now: datetime) -> list[str]:
    """Why a new certificate is due."""
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


def run(module: AnsibleModule) -> dict[str, Any]:
    params: dict[str, Any] = module.params
    store = Store(Path(params["path"]), params["owner"], check_mode=module.check_mode)
    now = datetime.now(UTC)
    store.prepare()
    due_authority: list[str] = []
    if params["authority"]:
        due_authority = authority_reasons(store, params["names"], now, params["renew_days"])
    before: dict[str, Any] = {}
    due: list[str] = []
    try:
        pair = store.pair()
        before = describe(pair.leaf)
        due = reasons(store, pair, params, now)
    except UnusableError as error:
        due = [f"certificate: {error}"]
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
            if not module.check_mode:
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


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "owner": {"type": "int", "default": 0},
            "renew_days": {"type": "int", "default": 30},
            "authority": {"type": "bool", "default": False},
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
        result = run(module)
    except UnusableError as error:
        module.fail_json(msg=f"{error}.")
    except OSError as error:
        module.fail_json(msg=f"Cannot keep certificates in {module.params['path']}: {error}.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
