"""render_tree through real ansible-playbook runs.

The architecture's "How a change travels", steps 2 to 4: one module execution per tree, check mode,
diff, secrets masked, atomic swap, validation before anything live changes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness import BIN

if TYPE_CHECKING:
    from tests.plugins.conftest import Project


def everything(root: Path) -> dict[str, bytes | None]:
    """The content of every path below root."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


def shown(diff: list[dict[str, str]]) -> dict[str, tuple[str, str]]:
    return {item["after_header"].split(" ")[0]: (item["before"], item["after"]) for item in diff}


def test_forty_files_take_one_execution(project: Project) -> None:
    for number in range(40):
        project.template(f"config/{number:02}.conf.j2", "value={{ value }}\n# " + "x" * 500)
    outcome = project.render(variables={"value": 7})
    assert outcome.executions == 1
    assert len(outcome.last["changed_files"]) == 40
    assert (project.current / "config/39.conf").read_text().startswith("value=7\n")
    again = project.render("--diff", variables={"value": 7})
    assert (again.executions, again.last["changed"], again.last["diff"]) == (1, False, [])
    assert again.last["digest"] == outcome.last["digest"]


def test_what_is_known_to_be_live_costs_nothing(project: Project) -> None:
    """And answers as if the target had been asked; whatever may differ there is asked."""
    project.template("config/a.conf.j2", "value={{ value }}\n")
    project.template("compose.yml.j2", "{{ render_tree_digests.config }}\n")
    stage = str(project.stage)
    first = project.render(variables={"value": 7}).last
    live = {str(project.dest): first["digest"], "/elsewhere": "0"}
    asked = project.render(variables={"value": 7}, stage=stage)
    before = everything(project.root / "stage")
    known = project.render(variables={"value": 7}, stage=stage, live=live)
    assert (asked.executions, known.executions) == (1, 0)
    fields = ("changed", "digest", "digests", "changed_files", "tree", "validated")
    assert [known.last[name] for name in fields] == [asked.last[name] for name in fields]
    assert everything(project.root / "stage") == before

    changed = project.render(variables={"value": 8}, stage=stage, live=live)
    assert (changed.executions, changed.last["changed"]) == (1, True)
    for target in ({"keep": ["*.local"]}, {"owner": "root"}, {"group": "root"}, {"mode": "0600"}):
        assert project.render(variables={"value": 7}, stage=stage, live=live, **target).executions


def test_gathers_what_others_contribute(project: Project) -> None:
    """CS-10: several directories make one tree, and it is validated as one."""
    project.template("config/main.yml.j2", "value={{ value }}\n")
    others = project.root / "others"
    for name, text in (("redis", "{{ value }} {% include 'part' %}"), ("nginx", "plain")):
        (others / name / "deep").mkdir(parents=True)
        (others / name / "deep" / "rules.yml.j2").write_text(text)
        (others / name / "_part").write_text("not a file of its own")
        (others / name / "part").write_text("by itself")
    gather = {f"config/rooms/{name}": str(others / name) for name in ("redis", "nginx", "absent")}
    outcome = project.render(variables={"value": 7}, gather=gather)
    assert outcome.executions == 1
    assert {path: text for path, text in everything(project.current).items() if text} == {
        "config/main.yml": b"value=7\n",
        "config/rooms/redis/deep/rules.yml": b"7 by itself",
        "config/rooms/redis/part": b"by itself",
        "config/rooms/nginx/deep/rules.yml": b"plain",
        "config/rooms/nginx/part": b"by itself",
    }
    del gather["config/rooms/redis"]
    fewer = project.render(variables={"value": 7}, gather=gather)
    assert fewer.last["changed_files"] == [
        "config/rooms/redis/deep/rules.yml",
        "config/rooms/redis/part",
    ]
    for place in ("/etc", "../config", "config//rooms"):
        refused = project.render(variables={"value": 7}, gather={place: str(others)})
        assert refused.returncode != 0
        assert "which is no path in the tree" in refused.output
    twice = project.render(
        variables={"value": 7},
        gather={"a": str(others / "nginx"), "a/deep": str(others / "nginx/deep")},
    )
    assert "both make a/deep/rules.yml" in twice.output


def test_what_is_rendered_and_what_is_copied(project: Project) -> None:
    """Jinja options, imports, binary and executable files, partials, digests."""
    binary = bytes(range(256)) * 10
    project.template("boot/start.sh", "#!/bin/sh\n{{ not rendered }}\n", 0o755)
    project.template("boot/logo.bin", binary)
    project.template("config/a.conf.j2", "{% for i in [1, 2] %}\n{{ i }}\n{% endfor %}\nend\n")
    project.template("config/b.conf.j2", "{% include '_part.j2' %}\n")
    project.template("config/_part.j2", "part of {{ name }}\n")
    project.template("config/number.j2", "{{ 7 }}")
    project.template("config/empty.conf.j2", "{% if false %}x{% endif %}\n")
    project.template("config/.gitkeep", "")
    project.template(
        "compose.yml.j2",
        "{% from 'service.j2' import hardened %}{{ hardened() }} {{ render_tree_digests.boot }}\n",
    )
    shared = project.root / "shared"
    shared.mkdir()
    (shared / "service.j2").write_text("{% macro hardened() %}read_only: true{% endmacro %}")
    outcome = project.render(variables={"name": "demo"}, include_path=["shared"])
    boot = outcome.last["digests"]["boot"]
    assert everything(project.current) == {
        "boot": None,
        "boot/start.sh": b"#!/bin/sh\n{{ not rendered }}\n",
        "boot/logo.bin": binary,
        "config": None,
        "config/a.conf": b"1\n2\nend\n",
        "config/b.conf": b"part of demo\n",
        "config/number": b"7",
        "config/empty.conf": b"\n",
        "compose.yml": f"read_only: true {boot}\n".encode(),
    }
    assert (project.current / "boot/start.sh").stat().st_mode & 0o777 == 0o755
    assert (project.current / "boot/logo.bin").stat().st_mode & 0o777 == 0o644
    skipped = project.render(
        variables={"name": "demo"},
        include_path=["shared"],
        skip_empty=True,
        exclude=["config/b*"],
    )
    assert sorted(skipped.last["changed_files"]) == ["config/b.conf", "config/empty.conf"]
    assert not (project.current / "config/empty.conf").exists()


def test_drift_is_shown_and_restored(project: Project) -> None:
    """A file, a mode or an extra file changed by hand, and files no longer rendered."""
    project.template("config/a.conf", "a\n")
    project.template("config/b.conf", "b\n")
    project.template("config/gone.conf", "gone\n")
    project.render()
    (project.templates / "config/gone.conf").unlink()
    (project.current / "config/a.conf").write_text("edited\n")
    (project.current / "config/b.conf").chmod(0o666)
    (project.current / "config/extra").write_text("extra\n")
    before = everything(project.dest)
    checked = project.render("--check", "--diff")
    assert everything(project.dest) == before, "check mode wrote something"
    applied = project.render("--diff")
    assert checked.last["diff"] == applied.last["diff"]
    assert checked.last["changed_files"] == applied.last["changed_files"]
    assert shown(applied.last["diff"]) == {
        "config/a.conf": ("edited\n", "a\n"),
        "config/b.conf": (
            f"file, mode 0666, owner {os.geteuid()}:{os.getegid()}\n",
            f"file, mode 0644, owner {os.geteuid()}:{os.getegid()}\n",
        ),
        "config/extra": ("extra\n", ""),
        "config/gone.conf": ("gone\n", ""),
    }
    assert everything(project.current) == {
        "config": None,
        "config/a.conf": b"a\n",
        "config/b.conf": b"b\n",
    }
    assert not project.render().last["changed"]


def test_secrets_are_never_shown(project: Project) -> None:
    """FS-8: neither a secret nor the one it replaces appears, however much is printed."""
    project.template("a.conf.j2", "user=app\npassword='{{ password }}' # x\n{{ lines }}\n")
    project.template("vaulted.conf.j2", "token={{ vaulted_token }}\n")
    vault = project.root / "vault-password"
    vault.write_text("vault\n")
    inline = subprocess.run(
        [
            BIN / "ansible-vault",
            "encrypt_string",
            "--vault-password-file",
            vault,
            "from-the-vault",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    (project.root / "host_vars").mkdir()
    (project.root / "host_vars" / "localhost.yml").write_text(f"vaulted_token: {inline}\n")
    # A former release, with a secret nobody can name any more.
    former = project.dest / "trees" / "former"
    former.mkdir(parents=True)
    (former / "a.conf").write_text("user=app\npassword='hunter2-old' # x\nold lines\n")
    project.current.symlink_to("trees/former")
    task = {"src": str(project.templates), "dest": str(project.dest)}
    task["secrets"] = "{{ [password, lines] }}"
    command = ["sh", "-c", "cat %s/current/*; echo {{ password }} >&2; exit 3"]
    play = {
        "vars": {"password": "hunter2-new", "lines": "multi line one\nmulti line two"},
        "tasks": [
            {"render_tree": {**task, "validate": [command]}, "ignore_errors": True},
            {"render_tree": task},
        ],
    }
    done = subprocess.run(
        project.command(play, ("--diff", "-vvv", "--vault-password-file", str(vault))),
        cwd=project.root,
        env=project.environment("ansible.builtin.default"),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    output = done.stdout + done.stderr
    for secret in ("hunter2-new", "hunter2-old", "multi line two", "from-the-vault"):
        assert secret not in output
    assert "exit code 3" in output
    assert " password='********' # x" in output
    assert "hunter2-new" in (project.current / "a.conf").read_text()


def test_a_vault_file_masks_its_values(project: Project) -> None:
    """FS-8: whole files of variables in Ansible Vault are the usual way to keep secrets."""
    project.template("a.conf.j2", "password={{ vaulted }}\nshown={{ plain }}\n")
    vault = project.root / "vault-password"
    vault.write_text("vault\n")
    group = project.root / "group_vars" / "all"
    group.mkdir(parents=True)
    (group / "vault.yml").write_text("vaulted: s3cret-value\n")
    (group / "plain.yml").write_text("plain: plain-value\n")
    (project.templates / "sealed.bin").write_text("sealed-content\n")
    for path in (group / "vault.yml", project.templates / "sealed.bin"):
        subprocess.run(
            [
                BIN / "ansible-vault",
                "encrypt",
                "--vault-password-file",
                vault,
                path,
            ],
            check=True,
            capture_output=True,
        )
    outcome = project.render("--diff", "--vault-password-file", str(vault))
    assert (project.current / "a.conf").read_text().startswith("password=s3cret-value")
    assert (project.current / "sealed.bin").read_text() == "sealed-content\n"
    assert "s3cret-value" not in outcome.output
    assert "sealed-content" not in outcome.output
    assert "plain-value" in outcome.output


def test_check_mode_on_an_empty_host_writes_nothing(project: Project) -> None:
    project.template("a.conf.j2", "a\n")
    project.template("logo.bin", b"\0\1")
    before = set(Path("/tmp").glob("render_tree-*"))
    outcome = project.render("--check", "--diff", validate=[["test", "-d", "%s/current"]])
    assert (outcome.last["changed"], outcome.last["validated"]) == (True, True)
    assert outcome.last["tree"] is None
    assert shown(outcome.last["diff"])["a.conf"] == ("", "a\n")
    assert shown(outcome.last["diff"])["logo.bin"][1].startswith("(binary, 2 bytes")
    assert not project.dest.parent.exists()
    assert set(Path("/tmp").glob("render_tree-*")) == before


def test_validation_guards_the_live_tree(project: Project) -> None:
    project.template("config/a.conf.j2", "{{ value }}\n")
    command = ["sh", "-c", "echo config/a.conf:1 is bad; grep -q good %s/current/config/a.conf"]
    task = {"src": str(project.templates), "dest": str(project.dest), "validate": [command]}
    outcome = project.tasks(
        {"render_tree": task, "vars": {"value": "good"}},
        {"render_tree": task, "vars": {"value": "wrong"}, "ignore_errors": True},
        {
            "render_tree": task,
            "vars": {"value": "wrong"},
            "ignore_errors": True,
            "check_mode": True,
        },
    )
    good, *failed = outcome.tasks
    assert good["validated"]
    for result in failed:
        assert result["failed"]
        assert "exit code 1" in result["msg"]
        assert "grep -q good" in result["msg"]
        assert "config/a.conf:1 is bad" in result["msg"]
        assert "roles/demo/templates/config/a.conf.j2" in result["msg"]
    assert (project.current / "config/a.conf").read_text() == "good\n"
    assert sorted(path.name for path in project.dest.iterdir()) == ["current", "trees"]


ERRORS: dict[str, tuple[dict[str, str], dict[str, object], list[str]]] = {
    "missing": ({}, {"src": "nowhere"}, ["nowhere", "was not found"]),
    "no-directory": ({"a": ""}, {"src": "{here}/a"}, ["is not a directory"]),
    "undefined": ({"a.j2": "ok\n{{ no_such }}\n"}, {}, ["a.j2:2", "'no_such' is undefined"]),
    "syntax": ({"a.j2": "ok\n\n{% if %}\n"}, {}, ["a.j2:3", "Syntax error"]),
    "import": ({"a.j2": "{% import 'no.j2' as no %}"}, {}, ["a.j2", "'no.j2' not found"]),
    "twice": ({"a.j2": "", "a": ""}, {}, ["both make a"]),
    "both": ({"a.j2": "", "a/b": ""}, {}, ["both a file and a directory"]),
    "symbolic": ({"a": ""}, {"modes": {"a": "rw-r--r--"}}, ["modes['a']", "is not a mode"]),
    "decimal": ({"a": ""}, {"mode": "0999"}, ["mode", "is not a mode"]),
    "owner": ({"a": ""}, {"owner": "no-such-user"}, ["no user no-such-user"]),
    "include": ({"a": ""}, {"include_path": ["nowhere"]}, ["include_path nowhere"]),
    "dest": ({"a": ""}, {"dest": "/etc/hostname/x"}, ["not a directory"]),
    "file": ({"a": ""}, {"dest": "/etc/hostname"}, ["not a directory", "move it away"]),
    "unknown": ({"a": ""}, {"destination": "/x"}, ["Unsupported parameters", "destination"]),
}


def test_errors_name_the_cause(project: Project) -> None:
    """Every failure says what is wrong and where, and writes nothing."""
    tasks = []
    for case, (files, args, _) in ERRORS.items():
        for name, content in files.items():
            project.template(f"{case}/{name}", content)
        here = str(project.templates / case)
        given = {
            key: value.replace("{here}", here) if isinstance(value, str) else value
            for key, value in args.items()
        }
        task = {"src": here, "dest": str(project.dest), **given}
        tasks.append({"render_tree": task, "ignore_errors": True})
    outcome = project.tasks(*tasks)
    for (case, (_, _, expected)), result in zip(ERRORS.items(), outcome.tasks, strict=True):
        assert result["failed"], case
        for words in expected:
            assert words in result["msg"], case
    assert not project.dest.exists()


def test_a_killed_run_changes_nothing_and_the_next_one_converges(project: Project) -> None:
    """Killed with SIGKILL while it validates: the old tree is live, leftovers go later."""
    project.template("a.j2", "{{ value }}\n")
    project.render(variables={"value": 1})
    pids = project.root / "pids"
    (project.root / "roles/demo/tasks/main.yml").write_text(
        json.dumps(
            [
                {
                    "render_tree": {
                        "dest": str(project.dest),
                        "validate": [
                            ["sh", "-c", f"echo $PPID > {pids}; echo $$ >> {pids}; exec sleep 30"]
                        ],
                    }
                }
            ]
        )
    )
    with subprocess.Popen(
        project.command({"roles": ["demo"], "vars": {"value": 2}}),
        cwd=project.root,
        env=project.environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 20
        while not (pids.exists() and len(pids.read_text().split()) == 2):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for pid in pids.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        os.killpg(process.pid, signal.SIGKILL)
    assert (project.current / "a").read_text() == "1\n"
    assert any(path.name.startswith(".new-") for path in project.dest.iterdir())
    outcome = project.render(variables={"value": 2})
    assert outcome.last["changed"]
    assert (project.current / "a").read_text() == "2\n"
    assert sorted(path.name for path in project.dest.iterdir()) == ["current", "trees"]


def test_megabytes_fit(project: Project) -> None:
    project.template("large.bin", os.urandom(4 << 20))
    outcome = project.render("--diff")
    assert outcome.executions == 1
    assert shown(outcome.last["diff"])["large.bin"][1].startswith("(large, 4194304 bytes")
    assert (project.current / "large.bin").stat().st_size == 4 << 20
