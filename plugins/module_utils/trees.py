"""Whole directory trees on a target, replaced by one rename(2).

A managed directory looks like this and is only ever changed through it::

    <dest>/trees/<first 12 digits of the digest>/...   never modified once written
    <dest>/current -> trees/<...>                      swapped atomically

Shared by the modules render_tree, activate_trees and compose_plan, and by render_tree's action
plugin, which computes digests on the controller with the same code.
"""

# Descriptors, fsync and rename(2) are what this file is about: pathlib hides them.
# ruff: noqa: PTH100, PTH101, PTH102, PTH104, PTH106, PTH108, PTH112, PTH114, PTH115, PTH116, PTH118
# ruff: noqa: PTH119, PTH120, PTH123, PTH208, PTH211

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import fnmatch
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
import time
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

FILE = "f"
DIRECTORY = "d"
SYMLINK = "l"
OTHER = "o"

MASK = "********"
NAME_DIGITS = 12
LOCK_TIMEOUT = 60
GRACE = 10
OUTPUT_LINES = 20
DIFF_LIMIT = 256 * 1024

_NEW = ".new-"
_LINK = ".link-"
_REMOVED = ".removed"

_REMEDIES = {
    errno.ENOSPC: "the file system is full: free some space and run again",
    errno.EDQUOT: "the disk quota is used up: free some space and run again",
    errno.EROFS: "the file system is mounted read-only: remount it or choose another directory",
    errno.EACCES: "permission denied: run with become, or choose a directory this user may write",
    errno.EPERM: "not permitted: run with become, or choose a directory this user may write",
    errno.ENOTDIR: "a part of the path is not a directory: move it away or choose another path",
}


class TreeError(Exception):
    """A failure whose message names the cause and the remedy."""


@dataclass(frozen=True)
class Entry:
    """One file or directory of a tree; content is empty for a directory."""

    kind: str
    mode: int
    content: bytes = b""
    uid: int = 0
    gid: int = 0


Tree = dict[str, Entry]


@contextlib.contextmanager
def explained(action: str) -> Iterator[None]:
    """Turn an operating system error into a message with a remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "nothing live was replaced")
        where = f"{error.filename}: " if error.filename else ""
        raise TreeError(f"cannot {action}: {where}{error.strerror}; {remedy}") from error


# --- values -----------------------------------------------------------------------------------


def digest(tree: Mapping[str, Entry]) -> str:
    """Hex SHA-256 of the tree's paths, kinds, modes and contents: nothing else counts."""
    total = hashlib.sha256()
    for path in sorted(tree):
        entry = tree[path]
        total.update(f"{entry.kind} {entry.mode:04o} ".encode())
        total.update(os.fsencode(path) + b"\0")
        total.update(hashlib.sha256(entry.content).digest())
    return total.hexdigest()


def subtree(tree: Mapping[str, Entry], top: str) -> Tree:
    """The part of a tree below one of its directories, as a tree of its own."""
    below = {
        path[len(top) + 1 :]: entry for path, entry in tree.items() if path.startswith(top + "/")
    }
    return {".": tree[top], **below}


def digests(tree: Mapping[str, Entry]) -> dict[str, str]:
    """The digest of each top-level directory."""
    return {
        path: digest(subtree(tree, path))
        for path, entry in tree.items()
        if entry.kind == DIRECTORY and path != "." and "/" not in path
    }


def parse_mode(value: object, name: str) -> int:
    """An octal string, or the integer YAML made of an unquoted octal number."""
    with contextlib.suppress(ValueError):
        mode = value if isinstance(value, int) else int(str(value), 8)
        if not isinstance(value, bool) and 0 <= mode <= 0o7777:
            return mode
    raise TreeError(f'{name}: {value!r} is not a mode: write it as an octal string such as "0644"')


@dataclass(frozen=True)
class Modes:
    """Which mode each path of a rendered tree gets."""

    file: int
    directory: int
    special: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, mode: object, directory_mode: object, modes: Mapping[str, object]) -> Modes:
        """Parse the parameters mode, directory_mode and modes."""
        return cls(
            parse_mode(mode, "mode"),
            parse_mode(directory_mode, "directory_mode"),
            tuple(
                (pattern, parse_mode(value, f"modes[{pattern!r}]"))
                for pattern, value in modes.items()
            ),
        )

    def for_file(self, path: str, executable: bool) -> int:
        """The last matching pattern wins; otherwise whoever may read an executable may run it."""
        default = self.file | (self.file & 0o444) >> 2 if executable else self.file
        return self._special(path, default)

    def for_directory(self, path: str) -> int:
        """Patterns that end in a slash are for directories."""
        return self._special(path + "/", self.directory)

    def _special(self, path: str, default: int) -> int:
        matches = [
            mode
            for pattern, mode in self.special
            if pattern.endswith("/") == path.endswith("/") and fnmatch.fnmatchcase(path, pattern)
        ]
        return matches[-1] if matches else default


def plant(files: Mapping[str, Entry], modes: Modes) -> Tree:
    """A tree of these files and of the directories they need."""
    tree: Tree = {".": Entry(DIRECTORY, modes.directory)}
    for path, entry in files.items():
        for end in (index for index, letter in enumerate(path) if letter == "/"):
            tree[path[:end]] = Entry(DIRECTORY, modes.for_directory(path[:end]))
        tree[path] = entry
    return tree


def owned(tree: Mapping[str, Entry], uid: int, gid: int) -> Tree:
    """The same tree, all of it belonging to one user and group."""
    return {path: replace(entry, uid=uid, gid=gid) for path, entry in tree.items()}


def carry_over(
    tree: Mapping[str, Entry], live: Mapping[str, Entry], keep: Sequence[str], modes: Modes
) -> Tree:
    """The tree with the live files that match a pattern in place of the rendered ones."""
    rendered = {path: entry for path, entry in tree.items() if entry.kind == FILE}
    kept = {
        path: entry
        for path, entry in live.items()
        if entry.kind == FILE and any(fnmatch.fnmatchcase(path, pattern) for pattern in keep)
    }
    return plant({**rendered, **kept}, modes)


def changed_paths(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> list[str]:
    """Paths that differ, without directories that only came or went with their files."""
    different = [path for path in sorted({*before, *after}) if before.get(path) != after.get(path)]
    telling = [
        path
        for path in different
        if (path in before and path in after) or (before.get(path) or after[path]).kind != DIRECTORY
    ]
    return telling or different


# --- what the operator sees -------------------------------------------------------------------


def mask(text: str, secrets: Iterable[str]) -> str:
    """Replace every secret, and each telling line of one that has several."""
    parts = {secret for secret in secrets if secret.strip()}
    parts |= {
        line
        for secret in secrets
        if "\n" in secret
        for line in secret.splitlines()
        if len(line.strip()) > 3
    }
    for part in sorted(parts, key=len, reverse=True):
        text = text.replace(part, MASK)
    return text


def mask_previous(before: str, after: str, secrets: Sequence[str]) -> str:
    """Mask in an old text also what stands where the new text has a secret: its former value."""
    before = mask(before, secrets)
    for line in {mask(line, secrets) for line in after.splitlines()}:
        if MASK in line:
            pattern = ".+".join(re.escape(part) for part in line.split(MASK))
            former = re.compile(f"^{pattern}$", re.MULTILINE)
            before = former.sub(line.replace("\\", r"\\"), before)
    return before


def _attributes(entry: Entry | None) -> str:
    kinds = {FILE: "file", DIRECTORY: "directory", SYMLINK: "symbolic link", OTHER: "special file"}
    if entry is None:
        return ""
    return f"{kinds[entry.kind]}, mode {entry.mode:04o}, owner {entry.uid}:{entry.gid}\n"


def _text(entry: Entry | None) -> str | None:
    """The content as text, or None if a diff of it would help nobody."""
    content = entry.content if entry else b""
    if len(content) > DIFF_LIMIT or b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _summary(entry: Entry | None) -> str:
    if entry is None:
        return ""
    kind = "large" if len(entry.content) > DIFF_LIMIT else "binary"
    checksum = hashlib.sha256(entry.content).hexdigest()[:NAME_DIGITS]
    return f"({kind}, {len(entry.content)} bytes, sha256 {checksum})\n"


def diff(
    before: Mapping[str, Entry], after: Mapping[str, Entry], secrets: Sequence[str]
) -> list[dict[str, str]]:
    """What --diff shows: contents file by file, then modes and owners where those changed."""
    result = []
    for path in changed_paths(before, after):
        old, new = before.get(path), after.get(path)
        headers = {
            "before_header": f"{path} (absent)" if old is None else path,
            "after_header": f"{path} (absent)" if new is None else path,
        }
        if old is None or new is None or old.content != new.content:
            old_text, new_text = _text(old), _text(new)
            if old_text is None or new_text is None:
                texts = {"before": _summary(old), "after": _summary(new)}
            else:
                texts = {
                    "before": mask_previous(old_text, new_text, secrets),
                    "after": mask(new_text, secrets),
                }
                if texts["before"] == texts["after"]:
                    note = (
                        "(empty)\n"
                        if old is None or new is None
                        else "(only masked values differ)\n"
                    )
                    texts["before" if new is None else "after"] += note
            result.append({**headers, **texts})
        if old and new and _attributes(old) != _attributes(new):
            result.append({**headers, "before": _attributes(old), "after": _attributes(new)})
    return result


# --- the file system --------------------------------------------------------------------------


def scan(root: str) -> Tree:
    """What is really there; empty if there is no such directory."""
    if not os.path.isdir(root):
        return {}
    tree: Tree = {}

    def visit(path: str, relative: str) -> None:
        status = os.lstat(path)
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            tree[relative] = Entry(DIRECTORY, mode, b"", status.st_uid, status.st_gid)
            for name in os.listdir(path):
                visit(os.path.join(path, name), name if relative == "." else f"{relative}/{name}")
            return
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                kind, content = FILE, file.read()
        elif stat.S_ISLNK(status.st_mode):
            kind, content = SYMLINK, os.fsencode(os.readlink(path))
        else:
            kind, content = OTHER, b""
        tree[relative] = Entry(kind, mode, content, status.st_uid, status.st_gid)

    with explained("read the live files"):
        visit(os.path.realpath(root), ".")
    return tree


def sync_directory(path: str) -> None:
    """Make the names in a directory survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(root: str, tree: Mapping[str, Entry], durable: bool) -> None:
    """Write a tree into a directory that does not exist yet."""
    foreign = [path for path, entry in tree.items() if entry.kind not in (FILE, DIRECTORY)]
    if foreign:
        raise TreeError(f"{foreign[0]} is neither a file nor a directory: remove it and run again")
    os.mkdir(root, 0o700)
    for path in sorted(tree):
        entry, target = tree[path], os.path.join(root, path)
        if path == ".":
            continue
        if entry.kind == DIRECTORY:
            os.mkdir(target, 0o700)
            continue
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(entry.content)
            file.flush()
            os.fchown(descriptor, entry.uid, entry.gid)
            os.fchmod(descriptor, entry.mode)
            if durable:
                os.fsync(descriptor)
    for path in sorted(tree, reverse=True):
        entry, target = tree[path], os.path.normpath(os.path.join(root, path))
        if entry.kind == DIRECTORY:
            if durable:
                sync_directory(target)
            os.chown(target, entry.uid, entry.gid)
            os.chmod(target, entry.mode)


def make_directory(path: str, mode: int) -> None:
    """Create a directory and its missing parents."""
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        raise TreeError(f"{path} is not a directory: move it away or choose another destination")
    for directory in reversed(missing):
        os.mkdir(directory, 0o700)
        os.chmod(directory, mode)


def make_scratch(path: str, mode: int) -> None:
    """Create a scratch directory that no other user can have prepared.

    Below a directory everybody may write to (/var/tmp), somebody else could wait with a directory
    of the expected name and change what is about to go live.
    """
    here = "/"
    for part in os.path.abspath(path).split("/")[1:]:
        shared = bool(os.stat(here).st_mode & stat.S_IWOTH)
        here = os.path.join(here, part)
        if not os.path.lexists(here):
            os.mkdir(here, 0o700)
            os.chmod(here, mode)
            continue
        status = os.lstat(here)
        if shared and (not stat.S_ISDIR(status.st_mode) or status.st_uid not in (0, os.geteuid())):
            raise TreeError(
                f"the scratch path {here} belongs to uid {status.st_uid} or is no directory: "
                "remove it or choose another stage"
            )
        if not os.path.isdir(here):
            raise TreeError(f"{here} is not a directory: move it away or choose another stage")


@contextlib.contextmanager
def locked(dest: str) -> Iterator[None]:
    """Let one process at a time change a directory; the kernel frees the lock of a dead one."""
    descriptor = os.open(dest, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TreeError(
                        f"another run has been changing {dest} for {LOCK_TIMEOUT} s: wait for it"
                    ) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def current_name(dest: str) -> str | None:
    """The name of the live tree, or None where there is none."""
    link = os.path.join(dest, "current")
    if not os.path.lexists(dest):
        return None
    if not os.path.isdir(dest):
        raise TreeError(f"dest {dest} is not a directory: move it away or choose another dest")
    if not os.path.lexists(link):
        return None
    if not os.path.islink(link):
        raise TreeError(
            f"{link} is not a symbolic link, so something else manages this directory: move it away"
        )
    target = os.readlink(link)
    return os.path.basename(target) if os.path.isdir(link) else None


def clean(dest: str) -> None:
    """Remove what an interrupted run left behind."""
    if os.path.isdir(dest):
        for name in os.listdir(dest):
            path = os.path.join(dest, name)
            if name.startswith(_LINK):
                os.unlink(path)
            elif name.startswith(_NEW):
                shutil.rmtree(path)


def new_candidate(dest: str) -> str:
    """A directory on the file system of dest, in which `current` can grow unseen."""
    candidate = tempfile.mkdtemp(prefix=_NEW, dir=dest)
    os.chmod(candidate, stat.S_IMODE(os.stat(dest).st_mode))
    return candidate


def link(directory: str, name: str, target: str) -> None:
    """Point a symbolic link somewhere else, at once for every reader."""
    # Unlike the link of an interrupted run; the lock excludes all others.
    temporary = os.path.join(directory, f"{_LINK}{os.getpid()}-{time.monotonic_ns()}")
    os.symlink(target, temporary)
    os.rename(temporary, os.path.join(directory, name))
    sync_directory(directory)


def place(dest: str, tree: Mapping[str, Entry], candidate: str | None) -> str:
    """Have the tree under trees/ and return its name; reuse one that is there and intact.

    A tree that was edited by hand keeps its name until it is pruned: it may still be live.
    """
    trees = os.path.join(dest, "trees")
    make_directory(trees, stat.S_IMODE(os.stat(dest).st_mode))
    base = digest(tree)[:NAME_DIGITS]
    name, number = base, 1
    while os.path.lexists(os.path.join(trees, name)):
        if scan(os.path.join(trees, name)) == tree:
            return name
        number += 1
        name = f"{base}-{number}"
    own = candidate or new_candidate(dest)
    if candidate is None:
        write(os.path.join(own, "current"), tree, durable=True)
    os.rename(os.path.join(own, "current"), os.path.join(trees, name))
    os.rmdir(own)
    sync_directory(trees)
    return name


def point(dest: str, name: str) -> None:
    """Make a placed tree the live one."""
    os.utime(os.path.join(dest, "trees", name))
    link(dest, "current", f"trees/{name}")


def prune(dest: str, keep: int, protected: Iterable[str | None]) -> None:
    """Remove all but the trees that were live most recently."""
    trees = os.path.join(dest, "trees")
    if not os.path.isdir(trees):
        return
    names = sorted(
        os.listdir(trees),
        key=lambda name: os.stat(os.path.join(trees, name)).st_mtime_ns,
        reverse=True,
    )
    safe = {*names[: max(keep, 1)], *protected}
    for name in names:
        if name not in safe:
            # Renamed first: an interrupted removal must not leave half a tree under a digest.
            doomed = os.path.join(dest, f"{_NEW}{name}")
            os.rename(os.path.join(trees, name), doomed)
            shutil.rmtree(doomed)


def resolve_owner(owner: str | None, group: str | None) -> tuple[int, int]:
    """Numeric user and group; those of this process by default."""
    try:
        uid = (
            os.geteuid()
            if owner is None
            else int(owner)
            if owner.isdigit()
            else pwd.getpwnam(owner).pw_uid
        )
    except KeyError:
        raise TreeError(
            f"there is no user {owner} on the target: create it first or give a number"
        ) from None
    try:
        gid = (
            os.getegid()
            if group is None
            else int(group)
            if group.isdigit()
            else grp.getgrnam(group).gr_gid
        )
    except KeyError:
        raise TreeError(
            f"there is no group {group} on the target: create it first or give a number"
        ) from None
    return uid, gid


# --- render_tree on the target ----------------------------------------------------------------


def pack(files: Mapping[str, Entry], origins: Mapping[str, str], secrets: Sequence[str]) -> str:
    """Everything the target needs, as one module argument."""
    document = {
        "secrets": list(secrets),
        "files": [
            [
                path,
                entry.mode,
                base64.b64encode(entry.content).decode("ascii"),
                origins.get(path, ""),
            ]
            for path, entry in files.items()
        ],
    }
    return base64.b64encode(zlib.compress(json.dumps(document).encode(), 6)).decode("ascii")


def unpack(payload: str) -> tuple[dict[str, Entry], dict[str, str], list[str]]:
    """The files, where each comes from, and the secrets to mask."""
    document = json.loads(zlib.decompress(base64.b64decode(payload)))
    files = {
        path: Entry(FILE, mode, base64.b64decode(content))
        for path, mode, content, _ in document["files"]
    }
    origins = {path: origin for path, _, _, origin in document["files"]}
    return files, origins, document["secrets"]


def _run(argv: Sequence[str], timeout: int) -> tuple[int, bytes]:
    """Exit code and output of a command; one that takes too long may end what it started."""
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=GRACE)
            process.kill()
            raise
        return process.returncode, output


def validate(
    commands: Sequence[Sequence[str]],
    directory: str,
    timeout: int,
    origins: Mapping[str, str],
    secrets: Sequence[str],
) -> None:
    """Run each command on the candidate below directory; the first that fails ends it."""
    for command in commands:
        argv = [str(word).replace("%s", directory) for word in command]
        shown = mask(" ".join(argv), secrets)
        try:
            returncode, printed = _run(argv, timeout)
        except subprocess.TimeoutExpired:
            raise TreeError(
                f"validation did not end within {timeout} s, the live files are unchanged: {shown}"
            ) from None
        except OSError as error:
            raise TreeError(
                f"validation could not start, the live files are unchanged: {shown}: {error}"
            ) from None
        if returncode != 0:
            output = (
                mask(printed.decode(errors="replace"), secrets).strip().splitlines()[-OUTPUT_LINES:]
            )
            named = [
                path for path in sorted(origins, key=len, reverse=True) if path in "\n".join(output)
            ]
            source = f"\n{named[0]} was rendered from {origins[named[0]]}" if named else ""
            raise TreeError(
                f"validation failed with exit code {returncode}, "
                f"the live files are unchanged: {shown}\n" + "\n".join(output) + source
            )


def _remove_scratch(path: str) -> None:
    shutil.rmtree(path, ignore_errors=True)


def render(params: Mapping[str, Any], check_mode: bool, with_diff: bool) -> dict[str, Any]:
    """Bring one rendered tree to where it belongs and say what that changed."""
    dest, stage = os.path.abspath(params["dest"]), params["stage"]
    modes = Modes.of(params["mode"], params["directory_mode"], params["modes"])
    files, origins, secrets = unpack(params["_payload"])
    previous = current_name(dest)
    live = scan(os.path.join(dest, "current")) if previous else {}
    tree = carry_over(plant(files, modes), live, params["keep"], modes)
    tree = owned(tree, *resolve_owner(params["owner"], params["group"]))
    changed = tree != live
    commands = params["validate"] if changed and params["validate_when"] else []
    result: dict[str, Any] = {
        "changed": changed,
        "digest": digest(tree),
        "digests": digests(tree),
        "changed_files": changed_paths(live, tree),
        "tree": os.path.join(dest, "trees", previous) if previous else None,
        "validated": bool(commands),
    }
    if params["validate"] and changed and not params["validate_when"]:
        result["note"] = "skipped validation, because validate_when is false"
    if with_diff:
        result["diff"] = diff(live, tree, secrets)

    if stage:
        with explained(f"write the stage {stage}"):
            make_scratch(stage, modes.directory)
            clean(stage)
            target = os.path.join(stage, "current")
            if os.path.lexists(target):
                shutil.rmtree(target)
            write(target, tree, durable=False)
        validate(commands, stage, params["validate_timeout"], origins, secrets)
    elif check_mode:
        if commands:
            with explained("write a scratch directory"):
                scratch = tempfile.mkdtemp(prefix="render_tree-")
                os.chmod(scratch, modes.directory)
                write(os.path.join(scratch, "current"), tree, durable=False)
            try:
                validate(commands, scratch, params["validate_timeout"], origins, secrets)
            finally:
                _remove_scratch(scratch)
    else:
        with explained(f"write {dest}"):
            make_directory(dest, modes.directory)
            with locked(dest):
                clean(dest)
                if changed:
                    _commit(dest, tree, commands, params, origins, secrets)
                prune(dest, params["keep_trees"], [current_name(dest)])
        result["tree"] = os.path.join(dest, "trees", current_name(dest) or "")
    return result


def _commit(
    dest: str,
    tree: Tree,
    commands: Sequence[Sequence[str]],
    params: Mapping[str, Any],
    origins: Mapping[str, str],
    secrets: Sequence[str],
) -> None:
    candidate = new_candidate(dest)
    try:
        write(os.path.join(candidate, "current"), tree, durable=True)
        validate(commands, candidate, params["validate_timeout"], origins, secrets)
        point(dest, place(dest, tree, candidate))
    finally:
        _remove_scratch(candidate)


# --- activate_trees ---------------------------------------------------------------------------


def _managed(dest: str) -> list[str]:
    """The names of the managed directories below dest."""
    if not os.path.isdir(dest):
        return []
    return sorted(
        name
        for name in os.listdir(dest)
        if not name.startswith(".") and os.path.isdir(os.path.join(dest, name, "trees"))
    )


def _retire(dest: str, name: str) -> None:
    """Take a managed directory out of use, yet keep it for restore until the next activation."""
    removed = os.path.join(dest, _REMOVED)
    make_directory(removed, 0o700)
    os.rename(os.path.join(dest, name), os.path.join(removed, name))
    sync_directory(dest)


def _links_to_change(directory: str, links: Mapping[str, str]) -> dict[str, str]:
    result = {}
    for name, target in links.items():
        path = os.path.join(directory, name)
        if os.path.lexists(path) and not os.path.islink(path):
            raise TreeError(
                f"{path} exists and is not a symbolic link: move it away, it would be overwritten"
            )
        if not os.path.islink(path) or os.readlink(path) != target:
            result[name] = target
    return result


class Comparison(NamedTuple):
    """What is staged against what is live."""

    root: str
    staged: dict[str, Tree]
    previous: dict[str, str | None]
    activated: list[str]
    removed: list[str]
    links: dict[str, str]

    def differs(self) -> bool:
        return bool(self.activated or self.removed or self.links)


def compare(params: Mapping[str, Any]) -> Comparison:
    """Compare every staged tree with the live one, and find what is no longer staged."""
    dest, stage = os.path.abspath(params["dest"]), os.path.abspath(params["stage"])
    links_directory = params["links_directory"] or dest
    root = os.path.abspath(params["stage_root"] or stage)
    if os.path.commonpath([root, stage]) != root:
        raise TreeError(f"stage_root {root} does not hold the stage {stage}: correct one of them")
    if os.path.commonpath([dest, root]) in (dest, root):
        raise TreeError(
            f"the stage {root} and dest {dest} hold one another: choose separate directories"
        )
    if not os.path.isdir(stage):
        raise TreeError(f"the stage {stage} does not exist: run render_tree with this stage first")

    names = params["names"] if params["names"] is not None else os.listdir(stage)
    if not names:
        raise TreeError(
            "nothing is staged, and activating that would remove everything: render first"
        )
    staged = {name: scan(os.path.join(stage, name, "current")) for name in sorted(names)}
    empty = [name for name, tree in staged.items() if not tree]
    if empty:
        raise TreeError(
            f"{stage}/{empty[0]} has no directory `current`: render it with render_tree first"
        )

    here = _managed(dest)
    previous = {name: current_name(os.path.join(dest, name)) for name in sorted({*staged, *here})}
    live = {
        name: scan(os.path.join(dest, name, "current")) if previous[name] else {} for name in staged
    }
    activated = [name for name, tree in staged.items() if tree != live[name]]
    removed = [name for name in here if name not in staged]
    links = _links_to_change(links_directory, params["links"])
    return Comparison(root, staged, previous, activated, removed, links)


def live_digests(home: str) -> dict[str, str]:
    """The digest of each live tree below home that belongs to this user, by its directory.

    Trees with anything of another owner are left out: a digest does not count owners.
    """
    mine = (os.geteuid(), os.getegid())
    found = {}
    for name in _managed(home):
        tree = scan(os.path.join(home, name, "current"))
        if tree and all((entry.uid, entry.gid) == mine for entry in tree.values()):
            found[os.path.join(home, name)] = digest(tree)
    return found


def complete_stage(stage: str, dest: str, rendered: Mapping[str, str]) -> None:
    """Copy to the stage the trees that were not staged, because they are live as they are.

    What an interrupted run has left in the stage in their place is replaced.
    """
    for name, wanted in sorted(rendered.items()):
        place = os.path.join(stage, name)
        target = os.path.join(place, "current")
        if digest(scan(target)) == wanted:
            continue
        tree = scan(os.path.join(dest, name, "current"))
        if digest(tree) != wanted:
            raise TreeError(
                f"{dest}/{name} has changed since this run began: see who else is at work there, "
                "and run again"
            )
        with explained(f"write the stage {place}"):
            make_scratch(place, tree["."].mode)
            clean(place)
            if os.path.lexists(target):
                shutil.rmtree(target)
            write(target, tree, durable=False)


def discard_unchanged(params: Mapping[str, Any]) -> bool:
    """Remove the stage when activating it would change nothing, and tell whether it would."""
    found = compare(params)
    if not found.differs():
        _remove_scratch(found.root)
    return found.differs()


def activate(params: Mapping[str, Any], check_mode: bool) -> dict[str, Any]:
    """Make every staged tree live and retire what is no longer staged."""
    directory_mode = parse_mode(params["directory_mode"], "directory_mode")
    dest = os.path.abspath(params["dest"])
    links_directory = params["links_directory"] or dest
    found = compare(params)
    root, staged, previous, activated, removed, links = found

    if not check_mode:
        with explained(f"write {dest}"):
            make_directory(dest, directory_mode)
            with locked(dest):
                _remove_scratch(os.path.join(dest, _REMOVED))
                rooms = {name: os.path.join(dest, name) for name in staged}
                for room in rooms.values():
                    make_directory(room, directory_mode)
                    clean(room)
                placed = {name: place(rooms[name], staged[name], None) for name in activated}
                for name, tree_name in placed.items():
                    point(rooms[name], tree_name)
                if links:
                    make_directory(links_directory, directory_mode)
                for name, target in links.items():
                    link(links_directory, name, target)
                for name in removed:
                    _retire(dest, name)
                for name, room in rooms.items():
                    prune(room, params["keep_trees"], [previous[name], current_name(room)])
    _remove_scratch(root)
    return {
        "changed": found.differs(),
        "activated": activated,
        "removed": removed,
        "links": sorted(links),
        "previous": previous,
        "digests": {name: digest(tree) for name, tree in staged.items()},
        "diff": _activation_diff(previous, staged, activated, removed, links),
    }


def _activation_diff(
    previous: Mapping[str, str | None],
    staged: Mapping[str, Tree],
    activated: Sequence[str],
    removed: Sequence[str],
    links: Mapping[str, str],
) -> dict[str, str]:
    before = [f"{name}: {previous[name] or 'absent'}" for name in sorted({*activated, *removed})]
    after = [
        f"{name}: {'absent' if name in removed else digest(staged[name])[:NAME_DIGITS]}"
        for name in sorted({*activated, *removed})
    ]
    after += [f"{name} -> {target}" for name, target in sorted(links.items())]
    return {
        "before": "".join(f"{line}\n" for line in before),
        "after": "".join(f"{line}\n" for line in after),
    }


def restore(params: Mapping[str, Any], check_mode: bool) -> dict[str, Any]:
    """Point every directory back to the tree it had before an activation."""
    dest = os.path.abspath(params["dest"])
    wanted: Mapping[str, str | None] = params["restore"]
    previous, restored, removed = {}, [], []
    unrestored: dict[str, str] = {}
    if not os.path.isdir(dest):
        raise TreeError(f"dest {dest} does not exist, so there is nothing to restore: correct dest")
    with explained(f"write {dest}"), locked(dest):
        for name, tree_name in sorted(wanted.items()):
            room = os.path.join(dest, name)
            retired = os.path.join(dest, _REMOVED, name)
            previous[name] = current_name(room)
            if tree_name == previous[name]:
                continue
            if tree_name is None:
                removed.append(name)
                if not check_mode:
                    _remove_scratch(retired)
                    _retire(dest, name)
                continue
            home = room if os.path.lexists(room) else retired
            if not os.path.isdir(os.path.join(home, "trees", tree_name)):
                unrestored[name] = f"the tree {tree_name} is no longer there"
                continue
            restored.append(name)
            if not check_mode:
                if home == retired:
                    os.rename(retired, room)
                    sync_directory(dest)
                if current_name(room) != tree_name:
                    point(room, tree_name)
        with contextlib.suppress(OSError):  # still in use by what was not restored
            if not check_mode:
                os.rmdir(os.path.join(dest, _REMOVED))
    lines = sorted({*restored, *removed})
    return {
        "changed": bool(restored or removed),
        "restored": restored,
        "removed": removed,
        "unrestored": unrestored,
        "previous": previous,
        "diff": {
            "before": "".join(f"{name}: {previous[name] or 'absent'}\n" for name in lines),
            "after": "".join(f"{name}: {wanted[name] or 'absent'}\n" for name in lines),
        },
    }
