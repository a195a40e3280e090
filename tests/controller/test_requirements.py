"""What the controller is made of."""

from __future__ import annotations

import json
import re
import subprocess
from importlib import metadata
from pathlib import Path

import ansible_collections
import pytest
import yaml

from tests.harness import BIN, ROOT

CONTROLLER = ["requirements.lock", "requirements-dev.lock"]
APPLICATION = ["app/requirements.lock", "app/requirements-test.lock"]
BACKUP = ["files/images/backup/requirements.lock"]
LOCKS = [*CONTROLLER, *APPLICATION, *BACKUP]
# A plugin's name in YAML or Python: namespace.collection.plugin.
FQCN = re.compile(
    r"(?<![\w./-])((?:ansible|community)\.\w+)\.[a-z_0-9]+(?=[\s:\"',)]|$)", re.MULTILINE
)
NOT_COLLECTIONS = {"builtin", "module_utils", "plugins", "errors", "parsing", "template", "cli"}


def stated() -> dict[str, str]:
    listed = yaml.safe_load((ROOT / "requirements.yml").read_text())["collections"]
    return {entry["name"]: entry["version"] for entry in listed}


def pins(lock: str) -> dict[str, str]:
    found = re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE)
    return dict(found)


def test_collections_are_those_of_the_ansible_package() -> None:
    """Issue 2, item 1: requirements.yml states the versions that are installed."""
    installed = {}
    for name in stated():
        namespace, collection = name.split(".")
        for root in ansible_collections.__path__:
            manifest = Path(root, namespace, collection, "MANIFEST.json")
            if manifest.exists():
                installed[name] = json.loads(manifest.read_text())["collection_info"]["version"]
    assert installed == stated()


def test_every_collection_that_is_used_is_stated() -> None:
    """Issue 2, item 1: and no other."""
    used = set()
    for directory in ("roles", "playbooks", "molecule", "plugins", "scripts", "inventories"):
        for path in (ROOT / directory).rglob("*"):
            if path.suffix in {".yml", ".py"} and "__pycache__" not in path.parts:
                used.update(FQCN.findall(path.read_text()))
    used = {name for name in used if name.split(".")[1] not in NOT_COLLECTIONS}
    assert used == set(stated())


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_is_pinned_and_hashed(lock: str) -> None:
    """CS-1: what is installed is what was tested; no index is named."""
    text = (ROOT / lock).read_text()
    assert "://" not in text
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert len(blocks) > (0 if lock in BACKUP else 5)
    for block in blocks:
        assert re.match(r"[a-z0-9-]+==\S+", block), block
        assert "--hash=sha256:" in block, block


@pytest.mark.parametrize("locks", [CONTROLLER, APPLICATION], ids=["controller", "application"])
def test_locks_hold_what_was_asked_for_and_agree(locks: list[str]) -> None:
    """CS-1: both locks can be installed together."""
    first, second = (pins(lock) for lock in locks)
    for lock, found in zip(locks, (first, second), strict=True):
        text = (ROOT / lock).with_suffix(".in").read_text()
        asked = re.findall(r"^([A-Za-z0-9-]+)(?:\[.*\])?(?:==(\S+))?", text, re.MULTILINE)
        for name, version in asked:
            if not name.startswith("-"):
                assert name.lower() in found, f"{lock}: {name}"
                assert version in ("", found[name.lower()]), f"{lock}: {name}"
    shared = first.keys() & second.keys()
    assert {name: first[name] for name in shared} == {name: second[name] for name in shared}


def test_every_lock_is_made_by_the_verb() -> None:
    """CS-13: `make lock` leaves none behind."""
    script = (ROOT / "scripts" / "lock").read_text()
    assert set(re.findall(r"--output-file (\S+)", script)) == set(LOCKS)
    tracked = subprocess.run(
        ["git", "ls-files", "*.lock"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(tracked.stdout.split()) == set(LOCKS)


@pytest.mark.parametrize("lock", CONTROLLER)
def test_installed_versions_are_the_locked_ones(lock: str) -> None:
    """CS-1: the environment that runs these tests is the one that the locks describe."""
    environment = {
        d.metadata["Name"].lower().replace("_", "-"): d.version for d in metadata.distributions()
    }
    for name, version in pins(lock).items():
        if name in environment:
            assert environment[name] == version, name
    assert {"ansible", "ansible-core", "pytest"} <= environment.keys()


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("locks", [CONTROLLER, APPLICATION], ids=["controller", "application"])
def test_locks_resolve_on_every_python(locks: list[str], version: str, tmp_path: Path) -> None:
    """CS-1: Debian 12 brings Python 3.11, Debian 13 brings 3.13."""
    command: list[str | Path] = [
        BIN / "uv",
        "pip",
        "install",
        "--dry-run",
        "--python-version",
        version,
    ]
    command += ["--target", tmp_path, "--require-hashes", "--only-binary", ":all:"]
    for lock in locks:
        command += ["--requirement", ROOT / lock]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if re.search(r"error sending request|dns error|timed out", done.stderr, re.IGNORECASE):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    named = {"requirements.lock": "ansible", "app/requirements.lock": "flask"}[locks[0]]
    assert f"{named}=={pins(locks[0])[named]}" in done.stderr
