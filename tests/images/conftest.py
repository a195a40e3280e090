"""The images role on this machine's engine, a registry on loopback and images of a few bytes."""

from __future__ import annotations

import base64
import io
import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from plugins.module_utils.docker_host import docker_facts
from tests.harness import ROOT, Run, playbook, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = ["postgres", "redis", "rabbitmq", "backup", "nginx", "api"]
PREFIX = "images-test"


def docker(*arguments: str, stdin: bytes | None = None, check: bool = True) -> str:
    done = subprocess.run(
        ["docker", *arguments], input=stdin, capture_output=True, timeout=120, check=False
    )
    if check:
        assert done.returncode == 0, f"docker {arguments}: {done.stderr.decode()}"
    return done.stdout.decode().strip()


def has(reference: str) -> bool:
    return bool(docker("image", "inspect", "--format", "{{.Id}}", reference, check=False))


def tiny_image(reference: str, *, platform: str = "linux/amd64") -> None:
    """An image that no other is equal to."""
    content = uuid.uuid4().bytes
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("marker")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    docker("import", "--platform", platform, "-", reference, stdin=buffer.getvalue())


@dataclass
class Outcome:
    run: Run

    @property
    def facts(self) -> dict[str, Any]:
        self.run.succeeded()
        word = re.search(r"FACTS=([\w+/=]+)", self.run.output)
        assert word, self.run.output
        facts: dict[str, Any] = json.loads(base64.b64decode(word[1]))
        return facts

    @property
    def refs(self) -> dict[str, str]:
        refs: dict[str, str] = self.facts["refs"]
        return refs

    def failed_saying(self, *words: str) -> None:
        self.run.failed()
        # Ansible wraps what it prints.
        said = " ".join(self.run.output.split())
        for word in words:
            assert word in said, f"{word!r} is not in\n{self.run.output[-4000:]}"


LOCALHOST = {
    "ansible_connection": "local",
    "ansible_python_interpreter": sys.executable,
}
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
UNREACHABLE = "127.0.0.1:9/nothing"


def images(source: str, *options: str, environment: Any = None, **variables: Any) -> Outcome:
    """Run the role; a registry is asked for nothing unless variables name one."""
    defaults = {
        # What the roles before it hand on.
        "docker_facts": docker_facts(),
        "preflight_facts": {"debian_architecture": ARCHITECTURE},
        "stack_image_source": source,
        **variables_of({name: f"{UNREACHABLE}/{name}:1@sha256:{'0' * 64}" for name in NAMES}),
        "images_archive": "/nonexistent.tar",
        **({"api_image": ""} if source in ("distro", "auto") else {}),
    }
    return Outcome(
        playbook(
            "localhost,",
            *options,
            name="../tests/images/play.yml",
            variables={**LOCALHOST, **defaults, **variables},
            environment=environment,
            seconds=600,
        )
    )


@pytest.fixture(scope="session")
def distro() -> dict[str, str]:
    """References of the distribution's images, built when they are missing."""
    return images("distro").refs


@pytest.fixture(scope="session")
def registry(distro: dict[str, str]) -> Iterator[str]:
    """Address of a registry that forgets everything at the end."""
    base = docker(
        "image",
        "ls",
        "--filter",
        "reference=compose-stack/base",
        "--format",
        "{{.Repository}}:{{.Tag}}",
    ).splitlines()[0]
    image = f"{PREFIX}/registry:1"
    context = ROOT / "tests" / "images" / "registry"
    docker(
        "buildx",
        "build",
        "--quiet",
        f"--build-arg=BASE_IMAGE={base}",
        f"--tag={image}",
        str(context),
    )
    name = f"{PREFIX}-registry-{uuid.uuid4().hex[:8]}"
    docker("run", "--detach", "--rm", f"--name={name}", "--publish=127.0.0.1::5000", image)
    try:
        address = docker("port", name, "5000/tcp").splitlines()[0]
        wait_for("the registry", lambda: "listening" in logs(name), seconds=20)
        yield address
    finally:
        docker("rm", "--force", "--volumes", name, check=False)
        docker("image", "rm", "--force", image, check=False)


def logs(container: str) -> str:
    done = subprocess.run(
        ["docker", "logs", container], capture_output=True, text=True, timeout=20, check=False
    )
    return done.stdout + done.stderr


@pytest.fixture
def pushed(registry: str) -> Iterator[dict[str, str]]:
    """References in the registry, by tag and digest; the engine does not have the images."""
    space = uuid.uuid4().hex[:8]
    references: dict[str, str] = {}
    for name in NAMES:
        tag = f"{registry}/{space}/{name}:1"
        tiny_image(tag)
        docker("push", "--quiet", tag)
        digests = json.loads(docker("image", "inspect", "--format", "{{json .RepoDigests}}", tag))
        references[name] = f"{tag}@{digests[0].split('@')[1]}"
        docker("image", "rm", "--force", docker("image", "inspect", "--format", "{{.Id}}", tag))
        assert not has(references[name])
    yield references
    for reference in references.values():
        docker("image", "rm", "--force", reference, check=False)


def variables_of(references: dict[str, str]) -> dict[str, Any]:
    """Variables that have the images pulled; what is always built has none, and is given one."""
    built = {"registry": references["backup"], "build": {"context": "backup"}}
    return {
        "_backup_images": {"backup": built},
        **{f"{name}_image": references[name] for name in references.keys() - {"backup"}},
    }


@pytest.fixture
def archived(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A bundle of images that the engine does not have."""
    tag = f"test-{uuid.uuid4().hex[:8]}"
    references = {name: f"compose-stack/{name}:{tag}" for name in NAMES}
    path = tmp_path / "images.tar"
    for reference in references.values():
        tiny_image(reference)
    docker("save", "--output", str(path), *references.values())
    docker("image", "rm", *references.values())
    yield path, references
    docker("image", "rm", *references.values(), check=False)
    shutil.rmtree(tmp_path, ignore_errors=True)
