"""The plugins behind the images role: digests of build contexts, and words for failures."""

from __future__ import annotations

import base64
import io
import os
import tarfile
from typing import TYPE_CHECKING

import pytest
from ansible.errors import AnsibleError

from plugins.filter.absent_images import absent_images
from plugins.filter.image_failure import image_failure
from plugins.lookup import build_context

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def context(tmp_path: Path) -> Path:
    directory = tmp_path / "context"
    (directory / "src" / "__pycache__").mkdir(parents=True)
    (directory / "Dockerfile").write_text("FROM scratch\n")
    (directory / ".dockerignore").write_text("# a comment\n*\n!src\n!*.lock\n**/__pycache__\n")
    (directory / "a.lock").write_text("a")
    (directory / "notes.txt").write_text("ignored")
    (directory / "src" / "main.py").write_text("main")
    (directory / "src" / "__pycache__" / "main.pyc").write_text("ignored")
    (directory / "src" / "run.sh").write_text("run")
    (directory / "src" / "run.sh").chmod(0o755)
    (directory / "src" / "link").symlink_to("main.py")
    return directory


SEEN = ["Dockerfile", "a.lock", "src/link", "src/main.py", "src/run.sh"]


def test_a_context_holds_what_docker_would_send(context: Path) -> None:
    assert [name for name, _ in build_context.context_files(context)] == SEEN


@pytest.mark.parametrize(
    ("pattern", "name", "ignored"),
    [
        ("*.pyc", "a.pyc", True),
        ("*.pyc", "src/a.pyc", False),
        ("**/*.pyc", "src/deep/a.pyc", True),
        ("**/*.pyc", "a.pyc", True),
        ("tests", "tests/test_a.py", True),
        ("tests", "mytests/a", False),
        ("/tests/", "tests/a", True),
        ("src/**", "src/a/b", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("[ab].py", "b.py", True),
        ("a+b", "a+b", True),
        ("*\n!keep", "keep/a", False),
        ("*\n!keep\nkeep/not", "keep/not", True),
    ],
)
def test_ignore_rules(pattern: str, name: str, ignored: bool) -> None:
    assert build_context.IgnoreRules(pattern).ignores(name) is ignored


def test_the_digest_knows_every_input(context: Path) -> None:
    """CS-15: nothing is rebuilt without cause, and with cause always."""
    before = build_context.digest([context], ["parent"])
    assert len(before) == 12

    (context / "notes.txt").write_text("still ignored")
    (context / "src" / "main.py").chmod(0o600)
    os.utime(context / "a.lock", (0, 0))
    assert build_context.digest([context], ["parent"]) == before

    digests = {before, build_context.digest([context], ["other parent"])}
    (context / "src" / "run.sh").chmod(0o644)
    digests.add(build_context.digest([context], ["parent"]))
    (context / "a.lock").rename(context / "b.lock")
    digests.add(build_context.digest([context], ["parent"]))
    (context / "src" / "main.py").write_text("changed")
    digests.add(build_context.digest([context], ["parent"]))
    assert len(digests) == 5


def test_the_archive_carries_the_context(context: Path) -> None:
    packed = base64.b64decode(build_context.archive([context], {"docker-bake.json": "{}"}))
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert tar.getnames() == [*(f"context/{name}" for name in SEEN), "docker-bake.json"]
        assert tar.getmember("context/src/run.sh").mode == 0o755
        assert tar.getmember("context/src/link").linkname == "main.py"


def test_a_missing_context_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnsibleError, match="checkout"):
        build_context.digest([tmp_path / "app"], [])


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("dial tcp: lookup docker.io: no such host", "cannot be reached"),
        ("net/http: request canceled (Client.Timeout exceeded)", "cannot be reached"),
        ("E: Failed to fetch http://deb.debian.org/ Connection timed out", "cannot be reached"),
        ("manifest for redis:99 not found: manifest unknown", "no image with that name"),
        ("docker.io/library/none:1: not found", "no image with that name"),
        ("pull access denied for x, repository does not exist", "demands a login"),
        ("toomanyrequests: You have reached your pull rate limit", "too many requests"),
        ("write /var/lib/docker/x: no space left on device", "disk is full"),
        ("no matching manifest for linux/arm64/v8", "architecture"),
        ("manifest verification failed for digest sha256:00", "not what the digest"),
        ("SSLError(SSLCertVerificationError: CERTIFICATE_VERIFY_FAILED", "not trusted"),
        ("tls: failed to verify certificate: x509: unknown authority", "not trusted"),
        ("E: Unable to locate package redis-server", "lacks a package"),
        ("Cannot connect to the Docker daemon at unix:///", "Engine does not answer"),
        ("The following signatures: NO_PUBKEY 0E98404D386FA1D9", "signature"),
        ("gcc: something new", "end of its output"),
    ],
)
def test_failures_have_a_cause_and_a_remedy(said: str, cause: str) -> None:
    message = image_failure({"stdout": "1\n" * 100, "stderr": said}, "Pulling x")
    first, second, *rest = message.splitlines()
    assert first.startswith("Pulling x failed: ")
    assert cause in first
    assert second.startswith("Remedy: ")
    assert said in rest[-1]
    assert len(rest) < 40


@pytest.mark.parametrize(
    ("reference", "listed"),
    [
        ("compose-stack/api:48df57bd9ba1", "compose-stack/api:48df57bd9ba1"),
        ("docker.io/library/redis:8", "redis:8"),
        ("docker.io/timescale/timescaledb:2", "timescale/timescaledb:2"),
        ("nginx", "nginx:latest"),
        ("redis:8@sha256:00", "redis@sha256:00"),
        ("127.0.0.1:5000/redis@sha256:00", "127.0.0.1:5000/redis@sha256:00"),
        ("127.0.0.1:5000/redis:8@sha256:00", "127.0.0.1:5000/redis@sha256:00"),
        ("127.0.0.1:5000/redis", "127.0.0.1:5000/redis:latest"),
    ],
)
def test_absent_images_are_found_as_the_engine_lists_them(reference: str, listed: str) -> None:
    assert absent_images([reference], [listed]) == []
    others = ["redis:7", "redis@sha256:01", "127.0.0.1/redis:latest", "api:48df57bd9ba1"]
    assert absent_images([reference], others) == [reference]
