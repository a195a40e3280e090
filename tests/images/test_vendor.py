"""What Debian lacks, from release archives in vendor/.

The archives are stand-ins made here: they have the names and the layout of the real ones, and shell
scripts for programs. What is proved is this repository's mechanism, not that the programs run.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from plugins.lookup import release_archive
from tests.harness import ROOT
from tests.images.conftest import UNREACHABLE, docker, images
from tests.images.test_distro import inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.images.conftest import Outcome

PROFILES = ["monitoring", "logging"]
ROOMS = {"grafana", "loki", "alloy"}
MISSING = "no release archive in vendor/, see vendor/README.md"
PATTERNS = {
    "grafana": "grafana[-_][0-9]*linux[-_]{arch}.tar.gz",
    "loki": "loki-linux-{arch}.zip",
}
docker_test = pytest.mark.docker


def script(name: str) -> bytes:
    # Grafana's `cli` is told a password, and sends its own words to where nobody looks.
    return f"""#!/bin/sh
[ "$1" = cli ] && echo "told $(cat)" >&2
echo "stand-in {name} $*"
""".encode()


def tarball(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.uid = len(content), 0o755, 1234
            tar.addfile(member, io.BytesIO(content))


def zipped(path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        # Without an executable bit, as the real ones.
        archive.writestr(name, content)


def sums(directory: Path) -> None:
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in directory.iterdir()
    ]
    (directory / "SHA256SUMS").write_text("".join(lines))


def fill(directory: Path, arch: str) -> Path:
    tarball(
        directory / f"grafana-12.1.0.linux-{arch}.tar.gz",
        {
            "grafana-v12.1.0/bin/grafana": script("grafana"),
            "grafana-v12.1.0/conf/defaults.ini": b"",
        },
    )
    zipped(directory / f"loki-linux-{arch}.zip", f"loki-linux-{arch}", script("loki"))
    zipped(directory / f"alloy-linux-{arch}.zip", f"alloy-linux-{arch}", script("alloy"))
    return directory


@pytest.fixture(scope="session")
def arch() -> str:
    return docker("version", "--format", "{{.Server.Arch}}")


@pytest.fixture
def vendor(tmp_path: Path, arch: str) -> Path:
    return fill(tmp_path, arch)


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory, arch: str
) -> Iterator[tuple[Path, dict[str, str]]]:
    directory = fill(tmp_path_factory.mktemp("vendor"), arch)
    sums(directory)
    outcome = run(directory)
    assert outcome.facts["left_out"] == {}
    yield directory, outcome.refs
    for room in ROOMS:
        docker("image", "rm", "--force", outcome.refs[room], check=False)


def run(directory: Path, *options: str, source: str = "distro") -> Outcome:
    return images(source, *options, stack_profiles=PROFILES, _images_vendor_dir=str(directory))


@docker_test
def test_built_as_the_official_images_are(built: tuple[Path, dict[str, str]]) -> None:
    """FS-6, UT-9: programs on PATH, a numeric user, its data directory, what health checks call."""
    _, refs = built
    said = inside(
        refs["grafana"],
        """
        id -u; id -g; grafana server; command -v wget >/dev/null; echo $GF_PATHS_DATA
        stat -c '%u:%g' /var/lib/grafana; stat -c '%u' /usr/share/grafana/conf/defaults.ini
        """,
    )
    assert said.splitlines() == [
        "472", "472", "stand-in grafana server", "/var/lib/grafana", "472:472", "0",
    ]  # fmt: skip
    said = inside(
        refs["loki"],
        "id -u; loki -verify-config; command -v wget >/dev/null; stat -c '%u:%g' /loki",
    )
    assert said.splitlines() == ["10001", "stand-in loki -verify-config", "10001:10001"]
    said = inside(refs["alloy"], "id -u; alloy run; command -v bash; test ! -e /alloy")
    assert said.splitlines() == ["473", "stand-in alloy run", "/usr/bin/bash"]


@docker_test
def test_grafana_is_told_its_password_at_each_start(
    built: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """FS-8: by a file and standard input; the first start takes it from the configuration."""
    secret = tmp_path / "password"
    secret.write_text("of-today\n")
    said = inside(
        built[1]["grafana"],
        """
        sh /start.sh 2>&1
        echo made > $GF_PATHS_DATA/grafana.db
        sh /start.sh 2>&1
        """,
        f"--volume={ROOT}/roles/grafana/templates/boot/start.sh:/start.sh:ro",
        f"--volume={secret}:/run/secrets/grafana_admin_password:ro",
        "--tmpfs=/var/lib/grafana:uid=472,gid=472",
    )
    server = (
        "stand-in grafana server --homepath=/usr/share/grafana"
        " --config=/etc/compose-stack/current/boot/grafana.ini --packaging=docker"
    )
    assert said.splitlines() == [server, "told of-today", server]


@docker_test
def test_built_once_and_nothing_stays_behind(built: tuple[Path, dict[str, str]]) -> None:
    """CS-15: the same archives are the same images; their copies on the host are gone."""
    directory, refs = built
    again = run(directory)
    assert again.refs == refs
    assert (again.run.changed, again.run.executions) == (0, 0)
    assert not list(Path("/var/tmp").glob("compose-stack-vendor.*"))


@docker_test
def test_another_archive_is_another_image(vendor: Path, arch: str) -> None:
    before = run(vendor, "--check").refs
    zipped(vendor / f"loki-linux-{arch}.zip", f"loki-linux-{arch}", b"another")
    after = run(vendor, "--check").refs
    assert {name for name in before if before[name] != after[name]} == {"loki"}


@docker_test
def test_without_archives_they_are_left_out(tmp_path: Path) -> None:
    """CS-7: in a rehearsal as in earnest, and the run says why."""
    outcome = run(tmp_path, "--check")
    assert outcome.facts["left_out"] == dict.fromkeys(ROOMS, MISSING)
    assert not ROOMS & set(outcome.refs)
    assert {"prometheus", "alertmanager", "postgres"} <= set(outcome.refs)


@docker_test
def test_alloy_is_of_no_use_without_loki(vendor: Path, arch: str) -> None:
    (vendor / f"loki-linux-{arch}.zip").unlink()
    outcome = run(vendor, "--check")
    assert outcome.facts["left_out"] == {"loki": MISSING, "alloy": "of no use without loki"}
    assert "grafana" in outcome.refs


@docker_test
def test_an_archive_for_other_processors_is_none(tmp_path: Path, arch: str) -> None:
    fill(tmp_path, "arm64" if arch == "amd64" else "amd64")
    assert set(run(tmp_path, "--check").facts["left_out"]) == ROOMS


@docker_test
def test_a_wrong_checksum_ends_the_run(vendor: Path, arch: str) -> None:
    """Bad input: before anything is built, and by its name."""
    sums(vendor)
    zipped(vendor / f"loki-linux-{arch}.zip", f"loki-linux-{arch}", b"tampered with")
    for options in ((), ("--check",)):
        run(vendor, *options).failed_saying(
            f"loki-linux-{arch}.zip is not what SHA256SUMS says", "Nothing was built"
        )


@docker_test
def test_an_archive_with_something_else_in_it_builds_nothing(vendor: Path, arch: str) -> None:
    """Bad input: logcli's archive under Loki's name."""
    zipped(vendor / f"loki-linux-{arch}.zip", f"logcli-linux-{arch}", script("logcli"))
    run(vendor).failed_saying("Building", "failed")
    assert not list(Path("/var/tmp").glob("compose-stack-vendor.*"))


@docker_test
def test_a_registry_needs_no_archive(tmp_path: Path) -> None:
    names = {f"{room}_image": f"{UNREACHABLE}/{room}:1@sha256:{'0' * 64}" for room in ROOMS}
    outcome = images(
        "registry", "--check", stack_profiles=PROFILES, _images_vendor_dir=str(tmp_path), **names
    )
    assert outcome.facts["left_out"] == {}
    assert outcome.refs["grafana"] == names["grafana_image"]


@docker_test
def test_a_bundle_without_them_leaves_them_out(
    archived: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    path, _ = archived
    outcome = images(
        "archive", "--check", images_archive=str(path), stack_profiles=["logging"],
        _images_vendor_dir=str(tmp_path),
    )  # fmt: skip
    assert outcome.facts["left_out"] == dict.fromkeys(["loki", "alloy"], "not in images.tar")


def find(directory: Path) -> dict[str, dict[str, dict[str, str]]]:
    return release_archive.find(directory, PATTERNS, ["amd64", "arm64"])


def test_a_directory_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert find(tmp_path / "none") == {"archives": {}, "digests": {}, "problems": []}


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("grafana-12.1.0.linux-amd64.tar.gz", True),
        ("grafana_12.3.0_19497075765_linux_amd64.tar.gz", True),
        ("grafana-enterprise-12.1.0.linux-amd64.tar.gz", False),
        ("grafana-12.1.0.linux-amd64-musl.tar.gz", False),
        ("loki-linux-amd64.zip", True),
        ("loki-canary-linux-amd64.zip", False),
    ],
)
def test_archives_are_known_by_name(tmp_path: Path, name: str, fits: bool) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert bool(find(tmp_path)["archives"]) is fits


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda _: None, None),
        (
            lambda directory: (directory / "loki-linux-amd64.zip").write_bytes(b"y"),
            "loki-linux-amd64.zip is not what SHA256SUMS says",
        ),
        (
            lambda directory: (directory / "loki-linux-arm64.zip").write_bytes(b"y"),
            "loki-linux-arm64.zip does not stand in SHA256SUMS",
        ),
    ],
)
def test_checksums_are_kept(
    tmp_path: Path, change: Callable[[Path], None], problem: str | None
) -> None:
    (tmp_path / "loki-linux-amd64.zip").write_bytes(b"x")
    sums(tmp_path)
    change(tmp_path)
    found = find(tmp_path)["problems"]
    assert [text.split(",")[0] for text in found] == ([problem] if problem else [])


def test_two_versions_are_one_too_many(tmp_path: Path) -> None:
    for version in ("12.1.0", "12.2.0"):
        (tmp_path / f"grafana-{version}.linux-amd64.tar.gz").write_bytes(version.encode())
    (problem,) = find(tmp_path)["problems"]
    assert "several archives of grafana for amd64" in problem
