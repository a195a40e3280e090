"""The code render_tree and activate_trees share, called directly.

Digests, modes, masking, drift, pruning, staging, and what a SIGKILL at any point leaves behind.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.module_utils import trees
from plugins.modules.activate_trees import ARGUMENT_SPEC as ACTIVATE_SPEC
from plugins.modules.render_tree import ARGUMENT_SPEC as RENDER_SPEC

if TYPE_CHECKING:
    from collections.abc import Callable

Files = dict[str, str]


def defaults(spec: dict[str, dict[str, Any]], **given: Any) -> dict[str, Any]:
    """Parameters as Ansible hands them to a module."""
    return {**{name: option.get("default") for name, option in spec.items()}, **given}


def render(
    dest: Path, files: Files, *, check: bool = False, secrets: list[str] | None = None, **args: Any
) -> dict[str, Any]:
    """What the module does with files the controller has rendered."""
    params = defaults(RENDER_SPEC, dest=str(dest), **args)
    modes = trees.Modes.of(params["mode"], params["directory_mode"], params["modes"])
    entries = {
        path: trees.Entry(trees.FILE, modes.for_file(path, executable=False), content.encode())
        for path, content in files.items()
    }
    origins = {path: f"templates/{path}.j2" for path in files}
    params["_payload"] = trees.pack(entries, origins, secrets or [])
    return trees.render(params, check_mode=check, with_diff=True)


def activate(dest: Path, stage: Path, *, check: bool = False, **args: Any) -> dict[str, Any]:
    return trees.activate(
        defaults(ACTIVATE_SPEC, dest=str(dest), stage=str(stage), **args), check_mode=check
    )


def restore(dest: Path, previous: dict[str, Any], *, check: bool = False) -> dict[str, Any]:
    return trees.restore(
        defaults(ACTIVATE_SPEC, dest=str(dest), restore=previous), check_mode=check
    )


def contents(root: Path) -> Files:
    root = root.resolve()
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def modes(root: Path) -> dict[str, int]:
    root = root.resolve()
    return {
        path.relative_to(root).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in [root, *root.rglob("*")]
    }


def snapshot(root: Path) -> list[tuple[str, int, int]]:
    """Everything below root, with the times that would betray a write."""
    return sorted(
        (str(path), path.lstat().st_mtime_ns, path.lstat().st_mode) for path in root.rglob("*")
    )


# --- digests ----------------------------------------------------------------------------------

names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=6)
paths = st.lists(names.filter(lambda name: name not in {".", ".."}), min_size=1, max_size=3)
entries = st.builds(
    trees.Entry,
    kind=st.just(trees.FILE),
    mode=st.integers(0, 0o7777),
    content=st.binary(max_size=40),
    uid=st.integers(0, 9),
    gid=st.integers(0, 9),
)
file_maps = st.dictionaries(paths.map("/".join), entries, max_size=5)
ANY_MODES = trees.Modes(0o644, 0o755)


def without_conflicts(files: dict[str, trees.Entry]) -> dict[str, trees.Entry]:
    return {
        path: entry
        for path, entry in files.items()
        if not any(other.startswith(path + "/") for other in files)
    }


def essence(tree: trees.Tree) -> dict[str, tuple[str, int, bytes]]:
    return {path: (entry.kind, entry.mode, entry.content) for path, entry in tree.items()}


@given(file_maps, file_maps)
def test_the_digest_is_paths_modes_and_contents(
    left: dict[str, trees.Entry], right: dict[str, trees.Entry]
) -> None:
    """Equal digests exactly for equal paths, kinds, modes and contents; owners do not count."""
    one = trees.plant(without_conflicts(left), ANY_MODES)
    two = trees.plant(without_conflicts(right), ANY_MODES)
    assert (trees.digest(one) == trees.digest(two)) == (essence(one) == essence(two))
    assert trees.digest(one) == trees.digest(trees.owned(one, 7, 7))
    assert trees.digest(one) == trees.digest(dict(reversed(one.items())))


@given(file_maps.filter(bool), st.data())
def test_any_change_changes_the_digest(files: dict[str, trees.Entry], data: st.DataObject) -> None:
    tree = trees.plant(without_conflicts(files), ANY_MODES)
    path = data.draw(st.sampled_from(sorted(tree)))
    entry = tree[path]
    changes: list[trees.Tree] = [
        {**tree, path: replace(entry, mode=entry.mode ^ 1)},
        {**tree, path: replace(entry, content=entry.content + b"x")},
        {**tree, path: replace(entry, kind=trees.SYMLINK)},
        {**tree, path + "'": entry},
        {other: item for other, item in tree.items() if other != path},
    ]
    for changed in changes:
        assert trees.digest(changed) != trees.digest(tree)


@settings(max_examples=25)
@given(file_maps.map(without_conflicts))
def test_the_disk_returns_what_was_written(files: dict[str, trees.Entry]) -> None:
    readable = {path: replace(entry, mode=0o640) for path, entry in files.items()}
    tree = trees.owned(trees.plant(readable, ANY_MODES), os.geteuid(), os.getegid())
    with tempfile.TemporaryDirectory() as directory:
        root = f"{directory}/tree"
        trees.write(root, tree, durable=False)
        assert trees.scan(root) == tree


@given(file_maps.map(without_conflicts))
def test_a_directory_digest_depends_on_that_directory_alone(files: dict[str, trees.Entry]) -> None:
    tree = trees.plant(files, ANY_MODES)
    before = trees.digests(tree)
    top = "another"
    while top in tree:
        top += "'"
    entry = trees.Entry(trees.FILE, 0o644, b"x")
    after = trees.digests(trees.plant({**files, f"{top}/file": entry}, ANY_MODES))
    assert {name: value for name, value in after.items() if name != top} == before


@given(file_maps.map(without_conflicts), st.lists(st.text(max_size=9), max_size=3))
def test_a_payload_carries_everything(files: dict[str, trees.Entry], secrets: list[str]) -> None:
    origins = {path: f"from {path}" for path in files}
    unpacked, where, values = trees.unpack(trees.pack(files, origins, secrets))
    assert {path: (e.mode, e.content) for path, e in unpacked.items()} == {
        path: (e.mode, e.content) for path, e in files.items()
    }
    assert (where, values) == (origins, secrets)


# --- masking ----------------------------------------------------------------------------------

secret_text = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=4, max_size=12)


@given(st.text(max_size=30), secret_text.filter(lambda text: "*" not in text), st.text(max_size=30))
def test_a_masked_text_holds_no_secret(before: str, secret: str, after: str) -> None:
    """FS-8: whatever surrounds it."""
    assert secret not in trees.mask(before + secret + after, [secret])


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("key=old\nx=1\n", "key=new\nx=1\n", "key=********\nx=1\n"),
        ("a key='old' # note\n", "a key='new' # note\n", "a key='********' # note\n"),
        ("new\n", "new\n", "********\n"),
        ("key=\n", "key=new\n", "key=\n"),
        ("back\\slash=old\n", "back\\slash=new\n", "back\\slash=********\n"),
        ("other=old\n", "key=new\n", "other=old\n"),
    ],
)
def test_the_former_secret_is_masked_too(before: str, after: str, expected: str) -> None:
    """FS-8: a rotated secret's former value stands in the live file and in no variable."""
    assert trees.mask_previous(before, after, ["new"]) == expected


# --- one tree ---------------------------------------------------------------------------------


def test_modes_and_owner(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    wanted: dict[str, Any] = {
        "mode": "0640",
        "directory_mode": "0750",
        "modes": {"bin/*": 0o755, "private/": "0700", "private/key": "0400"},
    }
    files = {"bin/tool": "x", "private/key": "k", "other": "o"}
    first = render(dest, files, **wanted)
    assert modes(dest / "current") == {
        ".": 0o750,
        "bin": 0o750,
        "bin/tool": 0o755,
        "private": 0o700,
        "private/key": 0o400,
        "other": 0o640,
    }
    assert trees.Modes(0o640, 0o755).for_file("x", executable=True) == 0o750
    assert trees.Modes(0o604, 0o755).for_file("x", executable=True) == 0o705
    if os.geteuid() == 0:
        second = render(dest, files, **wanted, owner="nobody", group="12345")
        assert second["changed"]
        assert second["digest"] == first["digest"]
        status = (dest / "current" / "private" / "key").stat()
        assert (status.st_uid, status.st_gid) == (65534, 12345)
        assert not render(dest, files, **wanted, owner="65534", group="12345")["changed"]


def drift_content(live: Path) -> None:
    (live / "config" / "a").write_text("edited\n")


def drift_mode(live: Path) -> None:
    (live / "config" / "a").chmod(0o666)


def drift_directory_mode(live: Path) -> None:
    (live / "config").chmod(0o777)


def drift_root_mode(live: Path) -> None:
    live.resolve().chmod(0o700)


def drift_removed(live: Path) -> None:
    (live / "config" / "a").unlink()


def drift_added(live: Path) -> None:
    (live / "config" / "b").write_text("")


def drift_directory(live: Path) -> None:
    (live / "empty").mkdir()


def drift_symlink(live: Path) -> None:
    (live / "config" / "a").rename(live / "config" / "real")
    (live / "config" / "a").symlink_to("real")


@pytest.mark.parametrize(
    "drift",
    [
        drift_content,
        drift_mode,
        drift_directory_mode,
        drift_root_mode,
        drift_removed,
        drift_added,
        drift_directory,
        drift_symlink,
    ],
)
def test_every_drift_is_found_and_restored(tmp_path: Path, drift: Callable[[Path], None]) -> None:
    """What counts is what is on the disk, not what was once written there."""
    dest = tmp_path / "dest"
    files = {"config/a": "a\n", "top": "t\n"}
    render(dest, files)
    wanted = trees.scan(str(dest / "current"))
    drift(dest / "current")
    checked = render(dest, files, check=True)
    result = render(dest, files)
    assert result["changed"]
    assert result["changed_files"]
    assert result["diff"]
    assert (checked["changed_files"], checked["diff"]) == (result["changed_files"], result["diff"])
    assert trees.scan(str(dest / "current")) == wanted
    assert not render(dest, files)["changed"]


def test_going_back_to_an_edited_tree_renders_it_anew(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    first = render(dest, {"a": "1\n"})
    (dest / "current" / "a").write_text("edited\n")
    render(dest, {"a": "2\n"})
    back = render(dest, {"a": "1\n"})
    assert back["digest"] == first["digest"]
    assert contents(dest / "current") == {"a": "1\n"}


def test_old_trees_go_and_the_live_one_stays(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    for value in range(6):
        render(dest, {"a": str(value)}, keep_trees=3)
    assert len(list((dest / "trees").iterdir())) == 3
    render(dest, {"a": "4"}, keep_trees=1)
    assert [path.name for path in (dest / "trees").iterdir()] == [
        (dest / "current").readlink().name
    ]
    assert sorted(path.name for path in dest.iterdir()) == ["current", "trees"]


def test_the_link_is_relative_and_named_after_the_digest(tmp_path: Path) -> None:
    """A container sees the directory under another path."""
    dest = tmp_path / "dest"
    result = render(dest, {"a": "1"})
    assert (dest / "current").readlink() == Path("trees", result["digest"][:12])
    assert result["tree"] == str((dest / "current").resolve())


def test_keep_carries_live_files_over(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    first = render(dest, {"green.yml": "1", "blue.yml": "1", "api/x": "1"}, keep=["green.yml"])
    assert len(first["changed_files"]) == 3
    kept = render(dest, {"green.yml": "2", "blue.yml": "2"}, keep=["green.yml", "api/*"])
    assert kept["changed_files"] == ["blue.yml"]
    assert contents(dest / "current") == {"green.yml": "1", "blue.yml": "2", "api/x": "1"}


def test_check_mode_writes_nothing(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    render(dest, {"a": "1"})
    before = snapshot(tmp_path)
    result = render(dest, {"a": "2"}, check=True, validate=[["grep", "-q", "2", "%s/current/a"]])
    assert (result["changed"], result["validated"]) == (True, True)
    assert snapshot(tmp_path) == before


def test_an_unchanged_tree_is_not_written(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    render(dest, {"a": "1"})
    before = snapshot(tmp_path)
    assert not render(dest, {"a": "1"}, validate=[["false"]])["changed"]
    assert snapshot(tmp_path) == before


def test_validation(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    render(dest, {"a": "1"})
    before = snapshot(dest / "trees")
    cases: list[tuple[list[str], str]] = [
        (["sh", "-c", "echo first; echo a:1 pass-word; exit 7"], "exit code 7"),
        (["no-such-command"], "could not start"),
        (["sleep", "20"], "did not end within 1 s"),
    ]
    for command, words in cases:
        for check in (True, False):
            with pytest.raises(trees.TreeError, match=words) as caught:
                render(
                    dest,
                    {"a": "2"},
                    check=check,
                    validate=[["true"], command],
                    validate_timeout=1,
                    secrets=["pass-word"],
                )
            assert "live files are unchanged" in str(caught.value)
            assert "pass-word" not in str(caught.value)
    assert snapshot(dest / "trees") == before
    assert contents(dest / "current") == {"a": "1"}
    skipped = render(dest, {"a": "2"}, validate=[["false"]], validate_when=False)
    assert "skipped validation" in skipped["note"]
    assert not skipped["validated"]


def test_a_stage_is_whole_and_leaves_dest_alone(tmp_path: Path) -> None:
    dest, stage = tmp_path / "dest", tmp_path / "stage" / "room"
    render(dest, {"a": "1", "kept": "k"})
    before = snapshot(dest)
    render(dest, {"stale": "x"}, stage=str(stage))
    for check in (True, False):
        validate = [["grep", "-q", "2", "%s/current/a"]]
        args: dict[str, Any] = {"stage": str(stage), "keep": ["kept"], "validate": validate}
        result = render(dest, {"a": "2"}, check=check, **args)
        assert result["changed_files"] == ["a"]
        assert contents(stage / "current") == {"a": "2", "kept": "k"}
    assert not render(dest, {"a": "1", "kept": "k"}, stage=str(stage))["changed"]
    assert snapshot(dest) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_stage_another_user_prepared_is_refused(tmp_path: Path) -> None:
    """Whoever may write to /var/tmp must not decide what goes live."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    trap = shared / "stage"
    trap.mkdir()
    os.chown(trap, 65534, 65534)
    with pytest.raises(trees.TreeError, match="belongs to uid 65534"):
        render(tmp_path / "dest", {"a": "1"}, stage=str(trap / "room"))
    trap.rmdir()
    (tmp_path / "elsewhere").mkdir()
    trap.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(trees.TreeError, match="or is no directory"):
        render(tmp_path / "dest", {"a": "1"}, stage=str(trap / "room"))


def test_a_directory_somebody_else_manages_is_refused(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    (dest / "current").mkdir(parents=True)
    with pytest.raises(trees.TreeError, match="something else manages this directory"):
        render(dest, {"a": "1"})
    (tmp_path / "file").write_text("")
    with pytest.raises(trees.TreeError, match="is not a directory"):
        render(tmp_path / "file", {"a": "1"})
    with pytest.raises(trees.TreeError, match="is not a directory"):
        render(tmp_path / "file" / "below", {"a": "1"})


def test_a_full_disk_leaves_the_old_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dest = tmp_path / "dest"
    render(dest, {"a": "1"})
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "fchmod", full)
        with pytest.raises(trees.TreeError, match="file system is full: free some space"):
            render(dest, {"a": "2"})
    assert contents(dest / "current") == {"a": "1"}
    assert sorted(path.name for path in dest.iterdir()) == ["current", "trees"]


def test_only_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dest = tmp_path / "dest"
    render(dest, {"a": "1"})
    monkeypatch.setattr(trees, "LOCK_TIMEOUT", 0.2)
    with trees.locked(str(dest)), pytest.raises(trees.TreeError, match="another run"):
        render(dest, {"a": "2"})
    assert render(dest, {"a": "2"})["changed"]


# --- many trees -------------------------------------------------------------------------------


def stage_rooms(stage: Path, dest: Path, rooms: dict[str, Files]) -> None:
    for name, files in rooms.items():
        render(dest / name, files, stage=str(stage / name))


def live_rooms(dest: Path) -> dict[str, Files]:
    return {
        path.name: contents(path / "current")
        for path in sorted(dest.iterdir())
        if not path.name.startswith(".")
    }


def test_activation_and_the_way_back(tmp_path: Path) -> None:
    dest, stage = tmp_path / "services", tmp_path / "scratch" / "services"
    links = {"compose.yml": "services/stack/current/compose.yml"}
    args: dict[str, Any] = {
        "stage_root": str(stage.parent),
        "links": links,
        "links_directory": str(tmp_path),
    }
    old = {"redis": {"a": "1"}, "nginx": {"a": "1"}, "stack": {"compose.yml": "1"}}
    stage_rooms(stage, dest, old)
    checked = activate(dest, stage, check=True, **args)
    assert not dest.exists()
    assert not stage.parent.exists()
    stage_rooms(stage, dest, old)
    first = activate(dest, stage, **args)
    assert checked["diff"] == first["diff"]
    assert first["activated"] == ["nginx", "redis", "stack"]
    assert first["previous"] == {"nginx": None, "redis": None, "stack": None}
    assert (tmp_path / "compose.yml").read_text() == "1"
    assert not stage.parent.exists()

    stage_rooms(stage, dest, old)
    before = snapshot(dest)
    again = activate(dest, stage, **args)
    assert (again["changed"], again["activated"], again["links"]) == (False, [], [])
    assert snapshot(dest) == before

    new = {"redis": {"a": "2"}, "api": {"a": "1"}, "stack": {"compose.yml": "1"}}
    stage_rooms(stage, dest, new)
    (dest / "unmanaged").mkdir()
    second = activate(dest, stage, **args)
    assert (second["activated"], second["removed"]) == (["api", "redis"], ["nginx"])
    assert live_rooms(dest) == {**new, "unmanaged": {}}

    before = snapshot(dest)
    planned = restore(dest, second["previous"], check=True)
    assert snapshot(dest) == before
    back = restore(dest, second["previous"])
    assert (back["restored"], back["removed"], back["unrestored"]) == (
        ["nginx", "redis"],
        ["api"],
        {},
    )
    assert {**planned, "diff": None} == {**back, "diff": None}
    assert live_rooms(dest) == {**old, "unmanaged": {}}
    assert not restore(dest, second["previous"])["changed"]
    assert restore(dest, {"redis": "0123456789ab"})["unrestored"] == {
        "redis": "the tree 0123456789ab is no longer there"
    }


def test_the_tree_before_is_kept_for_the_way_back(tmp_path: Path) -> None:
    dest, stage = tmp_path / "services", tmp_path / "stage"
    for value in ("1", "2", "3"):
        stage_rooms(stage, dest, {"redis": {"a": value}})
        result = activate(dest, stage, keep_trees=1)
    assert len(list((dest / "redis" / "trees").iterdir())) == 2
    restore(dest, result["previous"])
    assert live_rooms(dest) == {"redis": {"a": "2"}}


def test_activation_repairs_drift(tmp_path: Path) -> None:
    dest, stage = tmp_path / "services", tmp_path / "stage"
    rooms = {"redis": {"a": "1"}}
    stage_rooms(stage, dest, rooms)
    activate(dest, stage)
    (dest / "redis" / "current" / "a").write_text("edited")
    stage_rooms(stage, dest, rooms)
    result = activate(dest, stage)
    assert result["activated"] == ["redis"]
    assert live_rooms(dest) == rooms


def test_a_stage_that_would_change_nothing_is_thrown_away(tmp_path: Path) -> None:
    """And one that would is left for the activation, whatever the change is."""
    dest, stage, links = tmp_path / "dest", tmp_path / "stage", tmp_path / "links"

    def due(*names: str, **links_wanted: str) -> bool:
        for name in names:
            render(dest / name, {"a": f"of {name}"}, stage=str(stage / name))
        args = {"names": list(names), "links": links_wanted, "links_directory": str(links)}
        params = defaults(ACTIVATE_SPEC, dest=str(dest), stage=str(stage), **args)
        answer = trees.discard_unchanged(params)
        assert stage.exists() == answer
        if answer:
            assert trees.activate(params, check_mode=False)["changed"]
        return answer

    assert due("redis", "nginx")
    before = contents(tmp_path)
    assert not due("redis", "nginx")
    assert contents(tmp_path) == before
    assert due("redis", "nginx", file="target")
    assert not due("redis", "nginx", file="target")
    assert due("redis", file="target")
    render(dest / "redis", {"a": "by hand"})
    assert due("redis", file="target")
    assert not due("redis", file="target")


def test_a_stage_is_completed_from_what_is_live(tmp_path: Path) -> None:
    """A room that is live as it was rendered is not staged; what lies in its place is stale."""
    dest, stage = tmp_path / "dest", tmp_path / "stage"
    digests = {name: render(dest / name, {"a": name})["digest"] for name in ("redis", "nginx")}
    assert trees.live_digests(str(dest)) == {
        str(dest / name): digest for name, digest in digests.items()
    }
    render(dest / "redis", {"a": "interrupted"}, stage=str(stage / "redis"))
    new = render(dest / "api", {"a": "new"}, stage=str(stage / "api"))["digest"]
    trees.complete_stage(str(stage), str(dest), {**digests, "api": new})
    wanted = {"redis/current/a": "redis", "nginx/current/a": "nginx", "api/current/a": "new"}
    assert contents(stage) == wanted
    assert activate(dest, stage)["activated"] == ["api"]

    with pytest.raises(trees.TreeError, match="redis has changed since this run began"):
        trees.complete_stage(str(stage), str(dest), {"redis": new})
    (dest / "nginx" / "current" / "a").write_text("by hand")
    os.chown(dest / "redis" / "current" / "a", 1, 1)
    found = trees.live_digests(str(dest))
    assert found.keys() == {str(dest / "nginx"), str(dest / "api")}
    assert found[str(dest / "nginx")] != digests["nginx"]
    assert trees.live_digests(str(tmp_path / "nowhere")) == {}


def test_a_stale_stage_is_not_activated(tmp_path: Path) -> None:
    dest, stage = tmp_path / "services", tmp_path / "stage"
    stage_rooms(stage, dest, {"left-over": {"a": "1"}, "redis": {"a": "1"}})
    result = activate(dest, stage, names=["redis"])
    assert result["activated"] == ["redis"]
    assert live_rooms(dest) == {"redis": {"a": "1"}}


def test_what_activation_refuses(tmp_path: Path) -> None:
    dest, stage = tmp_path / "services", tmp_path / "stage"
    with pytest.raises(trees.TreeError, match="does not exist: run render_tree"):
        activate(dest, stage)
    stage.mkdir()
    with pytest.raises(trees.TreeError, match="would remove everything"):
        activate(dest, stage)
    (stage / "redis").mkdir()
    with pytest.raises(trees.TreeError, match="redis has no directory `current`"):
        activate(dest, stage)
    stage_rooms(stage, dest, {"redis": {"a": "1"}})
    with pytest.raises(trees.TreeError, match="nginx has no directory `current`"):
        activate(dest, stage, names=["redis", "nginx"])
    with pytest.raises(trees.TreeError, match="hold one another"):
        activate(tmp_path, stage)
    with pytest.raises(trees.TreeError, match="does not hold the stage"):
        activate(dest, stage, stage_root=str(tmp_path / "elsewhere"))
    (tmp_path / "compose.yml").write_text("mine")
    with pytest.raises(trees.TreeError, match="would be overwritten"):
        activate(dest, stage, links={"compose.yml": "x"}, links_directory=str(tmp_path))
    assert (tmp_path / "compose.yml").read_text() == "mine"
    assert not dest.exists()


# --- killed at every point --------------------------------------------------------------------

CALLS = ("mkdir", "open", "fchmod", "chmod", "rename", "symlink", "utime", "unlink", "rmdir")


def killed_before_call(number: int, action: Callable[[], object]) -> bool:
    """Run action in a child that dies by SIGKILL before its nth call that changes the disk."""
    child = os.fork()
    if child == 0:
        count = 0
        for name in CALLS:
            original = getattr(os, name)

            def counted(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return _original(*args, **kwargs)

            setattr(os, name, counted)
        try:
            action()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a child of pytest must never go on as pytest
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_killed_at_any_point_a_tree_is_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    old, new = {"config/a": "1", "b": "1"}, {"config/a": "2", "c": "2"}
    dest = tmp_path / "dest"
    seen = set()
    number = 0
    while True:
        number += 1
        shutil.rmtree(dest, ignore_errors=True)
        render(dest, {"a": "0"})
        render(dest, old)
        died = killed_before_call(number, lambda: render(dest, new, keep_trees=1))
        live = contents(dest / "current")
        assert live in (old, new), f"call {number}"
        seen.add(live == new)
        render(dest, new, keep_trees=1)
        assert contents(dest / "current") == new
        assert sorted(path.name for path in dest.iterdir()) == ["current", "trees"], number
        assert len(list((dest / "trees").iterdir())) == 1
        if not died:
            break
    assert number > 15
    assert seen == {False, True}


def test_killed_at_any_point_activation_converges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    dest, stage = tmp_path / "services", tmp_path / "stage"
    old = {"redis": {"a": "1"}, "nginx": {"a": "1"}}
    new = {"redis": {"a": "2"}, "api": {"a": "1"}}
    args: dict[str, Any] = {"links": {"link": "target"}, "links_directory": str(tmp_path)}
    number = 0
    while True:
        number += 1
        for path in (dest, stage):
            shutil.rmtree(path, ignore_errors=True)
        (tmp_path / "link").unlink(missing_ok=True)
        stage_rooms(stage, dest, old)
        activate(dest, stage)
        stage_rooms(stage, dest, new)
        died = killed_before_call(number, lambda: activate(dest, stage, **args))
        for name, files in live_rooms(dest).items():
            assert files in ([old.get(name), new.get(name)] + ([{}] if name == "api" else []))
        stage_rooms(stage, dest, new)
        activate(dest, stage, **args)
        assert live_rooms(dest) == new
        assert (tmp_path / "link").readlink() == Path("target")
        leftovers = [p for p in dest.rglob(".*") if p.name.startswith((".new-", ".link-"))]
        assert not leftovers, number
        if not died:
            break
    assert number > 20
