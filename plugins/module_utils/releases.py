"""Releases as they are kept: what was rendered, and a record of whence, when and why."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ansible.module_utils import trees
from ansible.module_utils.trees import FILE, Entry, Tree, TreeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

RECORD = "release.json"
SPARE = "spare.yml"
SECRETS = "secrets.json"
_SCALE = re.compile(r"^([A-Z]+)_([A-Z]+)_SCALE=(\d+)$", re.MULTILINE)


def numbers(path: Path) -> list[int]:
    """The releases that are kept, in order."""
    found = path.iterdir() if path.is_dir() else ()
    return sorted(int(entry.name) for entry in found if entry.name.isdecimal())


def _read(path: Path, number: int) -> dict[str, Any]:
    """The record of a release.

    Raises:
        OSError, ValueError: there is none, or it is damaged.
    """
    found = json.loads((path / str(number) / RECORD).read_text("utf-8"))
    if not isinstance(found, dict) or not {"number", "at", "trees"} <= found.keys():
        raise ValueError("it is no record of a release")
    return found


def load(path: Path, number: int) -> dict[str, Any]:
    """The record of a release.

    Raises:
        TreeError: there is none, or it cannot be read.
    """
    try:
        return _read(path, number)
    except (OSError, ValueError) as error:
        kept = ", ".join(map(str, numbers(path))) or "none"
        raise TreeError(f"release {number} cannot be read ({error}); kept are: {kept}") from None


def readable(path: Path, which: Iterable[int]) -> list[dict[str, Any]]:
    """The records of these releases, without those that were damaged."""
    return survey(path, which)[0]


def survey(path: Path, which: Iterable[int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of these releases, and number, path and fault of each that was damaged."""
    found: list[dict[str, Any]] = []
    damaged: list[dict[str, Any]] = []
    for number in which:
        try:
            found.append(_read(path, number))
        except (OSError, ValueError) as error:
            record = str(path / str(number) / RECORD)
            damaged.append({"number": number, "path": record, "fault": str(error)})
    return found, damaged


def record(path: Path, services: Path, names: Sequence[str], facts: Mapping[str, Any]) -> int:
    """Keep what is live as the next release, whole or not at all, and return its number."""
    kept = numbers(path)
    number = kept[-1] + 1 if kept else 1
    fresh = path / f".{number}"
    with trees.explained(f"write the release {path}/{number}"):
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o755)
        live = {name: trees.scan(str(services / name / "current")) for name in names}
        for name, tree in live.items():
            trees.write(str(fresh / name), tree, durable=True)
        text = {
            "number": number,
            "at": time.time(),
            "trees": {name: trees.digest(tree) for name, tree in live.items()},
            **facts,
        }
        with (fresh / RECORD).open("w", encoding="utf-8") as file:
            json.dump(text, file, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path / str(number))
        trees.sync_directory(str(path))
    return number


def prune(path: Path, keep: int) -> list[dict[str, Any]]:
    """Remove all but the newest, at least two; return the records of those removed."""
    gone = numbers(path)[: -max(keep, 2)]
    records = readable(path, gone)
    for number in gone:
        shutil.rmtree(path / str(number))
    return records


class Restored(NamedTuple):
    """A release made ready to be activated."""

    target: str | None
    """Slot that shall serve it; None when it has no slots."""
    trees: dict[str, Tree]
    stands_by: bool = False
    """Whether the target slot has it already and does not serve."""


def restore(
    path: Path,
    number: int,
    services: Path,
    slots: Sequence[str],
    serving: str | None,
    secrets: Mapping[str, str],
) -> Restored:
    """Read a release, with its API in a slot that does not serve.

    Where the serving slot runs just that already, it stays. The secrets are those of today, by the
    present version of each: servers may refuse the earlier ones, which may be known to a thief.

    Raises:
        TreeError: the release is not whole.
    """
    facts = load(path, number)
    found = {name: trees.scan(str(path / str(number) / name)) for name in facts["trees"]}
    for name, wanted in facts["trees"].items():
        if trees.digest(found[name]) != wanted:
            raise TreeError(f"release {number} is not as it was recorded: {path}/{number}/{name}")
    then = facts.get("secrets", {})
    turned = {then[name]: version for name, version in secrets.items() if name in then}
    # Where they lay before servers were to accept more than one.
    turned |= {f"{name}.{then[name]}": f"{name}/{secrets[name]}" for name in secrets.keys() & then}
    found = {name: _with_versions(tree, turned) for name, tree in found.items()}
    if "api" not in found:
        return Restored(None, found)
    live = trees.scan(str(services / "api" / "current"))
    kept = found["api"]

    def recorded(slot: str) -> Entry:
        return kept[f"{slot}.yml" if slot == facts["slot"] else SPARE]

    if serving is None:
        target = facts["slot"]
    elif _same(live.get(f"{serving}.yml"), recorded(serving)):
        target = serving
    else:
        (target,) = (slot for slot in slots if slot != serving)
    (other,) = (slot for slot in slots if slot != target)
    stands_by = target != serving and _same(live.get(f"{target}.yml"), recorded(target))
    found["api"] = {
        **kept,
        f"{target}.yml": recorded(target),
        # What serves now stays as it is until the other has taken over.
        f"{other}.yml": live.get(f"{other}.yml", kept[f"{other}.yml"]),
        SPARE: recorded(other),
    }
    environment = found["stack"][".env"]
    text = scaled(environment.content.decode(), target)
    found["stack"][".env"] = replace(environment, content=text.encode())
    known = found["stack"].get(SECRETS)
    if known:
        used = trees.scan(str(services / "stack" / "current")).get(SECRETS, known)
        found["stack"][SECRETS] = replace(known, content=_with_secrets(known, used))
    return Restored(target, found, stands_by)


def stage(path: Path, found: Mapping[str, Tree]) -> None:
    """Lay trees out as render_tree would have staged them; what was there before goes."""
    with trees.explained(f"write the stage {path}"):
        shutil.rmtree(path, ignore_errors=True)
        for name, tree in found.items():
            trees.make_scratch(str(path / name), 0o755)
            trees.write(str(path / name / "current"), tree, durable=False)


def _with_versions(tree: Tree, turned: Mapping[str, str]) -> Tree:
    """A tree that names other versions of secrets; such a version is found nowhere else."""
    if not turned:
        return tree
    pattern = re.compile("|".join(map(re.escape, turned)).encode())

    def present(found: re.Match[bytes]) -> bytes:
        return turned[found[0].decode()].encode()

    return {
        name: replace(entry, content=pattern.sub(present, entry.content))
        for name, entry in tree.items()
    }


def _with_secrets(released: Entry, live: Entry) -> bytes:
    """A release's secrets, and those it does not know that what serves now was started with."""
    secrets = json.loads(live.content)["secrets"] | json.loads(released.content)["secrets"]
    return (json.dumps({"secrets": secrets}, indent=4, sort_keys=True) + "\n").encode()


def _same(one: Entry | None, other: Entry) -> bool:
    return one is not None and (one.kind, one.content) == (FILE, other.content)


def scaled(text: str, target: str) -> str:
    """A rendered .env that lets the target slot run as many containers as the recorded one."""
    most: dict[str, int] = {}
    for what, _, count in _SCALE.findall(text):
        most[what] = max(most.get(what, 0), int(count))
    return _SCALE.sub(
        lambda found: (
            f"{found[1]}_{found[2]}_SCALE={most[found[1]] if found[2] == target.upper() else 0}"
        ),
        text,
    )
