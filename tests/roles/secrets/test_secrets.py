"""The secrets role, run for real into a temporary directory."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from plugins.module_utils import secret_store
from plugins.module_utils.secret_store import problems
from tests.harness import Run, playbook

PLAY = "../tests/roles/secrets/play.yml"
if TYPE_CHECKING:
    from collections.abc import Callable

GENERATED = re.compile(r"[A-Za-z0-9]{43}")


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "stack"


def run(
    stack: Path,
    *options: str,
    services: tuple[str, ...] = ("alpha", "beta", "gamma"),
    **variables: Any,
) -> Run:
    return playbook(
        "localhost,",
        *options,
        name=PLAY,
        variables={
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "stack_dir": str(stack),
            "stack_services": list(services),
            **variables,
        },
        seconds=60,
    )


def versions(done: Run, word: str = "VERSIONS") -> dict[str, str]:
    # The callback folds long lines; no version holds a blank.
    found = re.search(rf"{word}=(\{{.*?\}})", done.output, re.DOTALL)
    assert found, done.output
    loaded: dict[str, str] = json.loads(re.sub(r"\s+", "", found.group(1)))
    return loaded


def content(stack: Path, name: str) -> str:
    return (stack / "secrets" / name).read_text()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_made_once_and_kept(stack: Path) -> None:
    """FS-8, CS-15: generated on the target, for root alone, never printed, then kept."""
    first = run(stack, "--diff", "-vvv").succeeded()
    names = ["alpha_password", "alpha_token", "beta_password"]
    values = {name: content(stack, name) for name in names}
    assert all(GENERATED.fullmatch(value) for value in values.values())
    assert len(set(values.values())) == 3
    assert mode(stack / "secrets") == 0o700
    assert {mode(stack / "secrets" / name) for name in names} == {0o444}
    assert not any(value in first.output for value in values.values())
    assert "alpha_password: generated" in first.output
    assert set(versions(first)) == set(names)

    second = run(stack, "--diff").succeeded()
    assert second.changed == 0
    assert second.executions == 1
    assert {name: content(stack, name) for name in names} == values
    assert versions(second) == versions(first)


def test_preflight_saves_the_execution(stack: Path) -> None:
    """FS-8: what preflight found in order, the role takes from it; what is not, it mends."""
    names = ["alpha_password", "alpha_token", "beta_password"]
    directory = stack / "secrets"

    def found(**given: str) -> secret_store.SecretFiles | None:
        digests = {
            name: hashlib.sha256(value.encode()).hexdigest() for name, value in given.items()
        }
        return secret_store.in_order(directory, names, ["gamma_token"], digests)

    assert found() is None
    made = run(stack, preflight_facts={"secrets": {"ready": False}}).succeeded()
    seen = found()
    assert seen is not None
    assert seen.versions == versions(made)
    secrets = {"ready": True, "versions": seen.versions, "unused": ["old_token"], "former": []}
    facts = {"secrets": secrets}
    again = run(stack, preflight_facts=facts).succeeded()
    assert (again.changed, again.executions) == (0, 0)
    assert versions(again) == versions(made)
    assert "No active service uses old_token" in again.output

    # A value of one's own: until it is there, once it is there, and another one.
    assert found(alpha_token="of my own") is None
    assert found(gamma_token="of a room that is off") is not None
    assert found(misspelt="anything") is None
    mine = {"alpha_token": "of-my-own"}
    kept = run(stack, secrets_values=mine).succeeded()
    assert versions(kept, "DIGESTS") == {"alpha_token": hashlib.sha256(b"of-my-own").hexdigest()}
    assert found(alpha_token="of-my-own") is not None
    assert found(alpha_token="another") is None

    version = versions(kept)["beta_password"]
    damages: list[Callable[[], None]] = [
        lambda: (directory / "beta_password").chmod(0o644),
        lambda: (directory / ".versions" / "beta_password" / version).chmod(0o644),
        (directory / ".versions" / "beta_password" / version).unlink,
        lambda: (directory / ".versions" / "beta_password").chmod(0o700),
        lambda: directory.chmod(0o755),
        (directory / ".version-key").unlink,
    ]
    for damage in damages:
        damage()
        assert found() is None
        run(stack, secrets_values=mine).succeeded()
        assert found() is not None


def test_check_mode_tells_the_truth_and_touches_nothing(stack: Path) -> None:
    """FS-8: on an empty host, and on one that needs nothing."""
    done = run(stack, "--check", "--diff").succeeded()
    assert done.changed == 1
    assert "alpha_token: generated" in done.output
    assert set(versions(done).values()) == {"pending"}
    assert not stack.parent.exists()

    made = run(stack).succeeded()
    again = run(stack, "--check", "--diff").succeeded()
    assert again.changed == 0
    assert versions(again) == versions(made)

    before = content(stack, "alpha_password")
    replacing = run(
        stack, "--check", "--diff", secrets_values={"alpha_password": "from-the-vault"}
    ).succeeded()
    assert replacing.changed == 1
    assert "alpha_password: replaced from secrets_values" in replacing.output
    assert content(stack, "alpha_password") == before


def test_vault_overrides(stack: Path, tmp_path: Path) -> None:
    """FS-8: a value from Ansible Vault takes the generated one's place and is never shown."""
    made = run(stack).succeeded()
    password = tmp_path / "vault-password"
    password.write_text("open sesame\n")
    vaulted = subprocess.run(
        [
            Path(sys.executable).parent / "ansible-vault",
            "encrypt_string",
            "--vault-password-file",
            password,
            "--name",
            "alpha_password",
            "from-the-vault",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    settings = tmp_path / "settings.yml"
    indented = "".join(f"  {line}\n" for line in vaulted.splitlines())
    settings.write_text(f"secrets_values:\n{indented}")
    options = ["--vault-password-file", str(password), "-e", f"@{settings}", "--diff", "-vvv"]
    done = run(stack, *options).succeeded()
    assert content(stack, "alpha_password") == "from-the-vault"
    assert "from-the-vault" not in done.output
    assert "alpha_password: replaced from secrets_values" in done.output
    assert versions(done)["alpha_password"] != versions(made)["alpha_password"]
    assert versions(done)["alpha_token"] == versions(made)["alpha_token"]
    assert run(stack, *options).succeeded().changed == 0
    # Taking the override away keeps what is in use.
    assert run(stack).succeeded().changed == 0
    assert content(stack, "alpha_password") == "from-the-vault"


def test_what_may_be_overridden_does_not_depend_on_what_is_switched_on(stack: Path) -> None:
    """FS-1: one vault serves inventories with different services."""
    values = {"beta_password": "long enough"}
    refused = run(stack, services=("alpha",), secrets_values=values).failed()
    assert "'beta_password' holds a line break, NUL, blank" in refused.output
    run(stack, services=("alpha",), secrets_values={"beta_password": "long-enough"}).succeeded()
    assert not (stack / "secrets" / "beta_password").exists()


def test_bad_overrides_are_refused_all_at_once(stack: Path) -> None:
    """FS-8: each with its name and cause, before anything is written, and without its value."""
    bad = {
        "alpha_password": "",
        "alpha_token": "with\nbreak",
        "beta_password": 12345678,
        "beta_pasword": "a-typing-error",
    }
    done = run(stack, secrets_values=bad).failed()
    said = " ".join(done.output.split())
    for message in (
        "'alpha_password' is empty: leave it out to have one generated",
        "'alpha_token' holds a line break",
        "'beta_password' is not text: put the value in quotes",
        "'beta_pasword' is not the name of a secret here",
        "(there are: alpha_password, alpha_token, beta_password)",
    ):
        assert message in said
    assert "a-typing-error" not in said
    assert not stack.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nul\0inside", "'x' holds a line break, NUL"),
        ("line\rfeed", "'x' holds a line break"),
        ("two words", "blank"),
        ("seven77", "'x' is shorter than 8 characters"),
        (None, "'x' is not text"),
        (["listed"], "'x' is not text"),
    ],
)
def test_a_bad_override_has_its_message(value: object, message: str) -> None:
    """FS-8."""
    (problem,) = problems(["x"], {"x": value}, [])
    assert message in problem


def test_repairs_and_reports(stack: Path) -> None:
    """FS-8: modes are repaired, edits are noticed, what nobody uses is named and kept."""
    made = run(stack).succeeded()
    secrets = stack / "secrets"
    secrets.chmod(0o755)
    (secrets / "alpha_token").chmod(0o600)
    (secrets / "beta_password").write_text("edited-by-hand")
    (secrets / "alpha_password").write_text("")  # what a power failure can leave
    (secrets / ".secret_files.abandoned").write_text("what a killed run left")
    if os.geteuid() == 0:
        os.chown(secrets / "alpha_token", 1234, 1234)
    done = run(stack, "--diff", services=("alpha", "beta")).succeeded()
    assert done.changed == 1
    assert mode(secrets) == 0o700
    assert mode(secrets / "alpha_token") == 0o444
    assert (secrets / "alpha_token").stat().st_uid == os.geteuid()
    assert GENERATED.fullmatch(content(stack, "alpha_password"))
    assert content(stack, "beta_password") == "edited-by-hand"
    assert versions(done)["beta_password"] != versions(made)["beta_password"]
    assert versions(done)["alpha_token"] == versions(made)["alpha_token"]
    assert not (secrets / ".secret_files.abandoned").exists()

    fewer = run(stack, services=("alpha",)).succeeded()
    assert fewer.changed == 0
    assert "No active service uses beta_password" in fewer.output
    assert content(stack, "beta_password") == "edited-by-hand"


def test_every_version_stays_until_servers_know(stack: Path) -> None:
    """FS-8: those that may run with an earlier value; secret_turn tells when nobody does."""
    values = ["first-attempt", "second-attempt"]
    made = versions(run(stack).succeeded())["alpha_password"]
    shelf = stack / "secrets" / ".versions" / "alpha_password"
    assert (shelf / made).read_text() == content(stack, "alpha_password")
    assert (mode(shelf.parent), mode(shelf), mode(shelf / made)) == (0o700, 0o755, 0o444)
    for value in values:
        newest = versions(run(stack, secrets_values={"alpha_password": value}).succeeded())
        assert (shelf / newest["alpha_password"]).read_text() == value
    assert len(list(shelf.iterdir())) == 3
    (shelf / newest["alpha_password"]).write_text("damaged")
    assert "FORMER=alpha_password" in run(stack, services=("alpha",)).succeeded().output
    assert (shelf / newest["alpha_password"]).read_text() == values[-1]
    assert len(list(shelf.iterdir())) == 3


def test_rotated(stack: Path) -> None:
    """FS-8: another value for those that were named, the earlier one kept beside it, none shown."""
    made = versions(run(stack).succeeded())
    before = {name: content(stack, name) for name in made}
    rotate: dict[str, Any] = {"_secrets_rotate": ["alpha_password"]}
    checked = run(stack, "--check", "--diff", **rotate).succeeded()
    assert "alpha_password: rotated" in checked.output
    assert versions(checked) == {**made, "alpha_password": "pending"}
    assert content(stack, "alpha_password") == before["alpha_password"]
    # Also where preflight has found that nothing is to be done.
    facts = {"ready": True, "versions": made, "unused": [], "former": []}
    done = run(stack, "--diff", "-vvv", preflight_facts={"secrets": facts}, **rotate).succeeded()
    after = content(stack, "alpha_password")
    assert GENERATED.fullmatch(after)
    assert {before["alpha_password"], after} == {
        path.read_text() for path in (stack / "secrets/.versions/alpha_password").iterdir()
    }
    assert not any(value in done.output for value in (after, *before.values()))
    changed = {name for name, version in versions(done).items() if version != made[name]}
    assert changed == {"alpha_password"}
    # What has its value elsewhere, and what nobody knows.
    mine = {"alpha_password": "of-my-own"}
    refused = run(stack, secrets_values=mine, **rotate).failed()
    assert "Cannot generate alpha_password: unknown, or in secrets_values" in refused.output
    assert content(stack, "alpha_password") == after


def damage_with_line_break(secrets: Path) -> None:
    (secrets / "alpha_token").write_text("line break\n")


def damage_with_directory_for_file(secrets: Path) -> None:
    (secrets / "alpha_token").unlink()
    (secrets / "alpha_token").mkdir()


def damage_with_file_for_directory(secrets: Path) -> None:
    shutil.rmtree(secrets)
    secrets.write_text("")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_with_line_break, "ends with a blank or line break"),
        (damage_with_directory_for_file, "not a regular file"),
        (damage_with_file_for_directory, "is not a directory"),
    ],
)
def test_what_cannot_be_used_is_said(
    stack: Path, damage: Callable[[Path], None], message: str
) -> None:
    """FS-8: nothing odd that was found is overwritten."""
    run(stack).succeeded()
    damage(stack / "secrets")
    assert message in " ".join(run(stack).failed().output.split())


def test_documentation_is_yaml() -> None:
    """CS-12."""
    source = (Path(__file__).parents[3] / "plugins/modules/secret_files.py").read_text()
    for block in re.findall(
        r'^(?:DOCUMENTATION|EXAMPLES|RETURN) = r"""(.*?)"""', source, re.MULTILINE | re.DOTALL
    ):
        assert yaml.safe_load(block)
