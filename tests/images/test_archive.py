"""Images from an archive: an air-gapped host needs that file and nothing else (issue item 3)."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible.errors import AnsibleError

from plugins.lookup import image_archive
from plugins.module_utils.docker_host import docker_facts
from tests.images.conftest import NAMES, docker, has, images, tiny_image

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.docker
Bundle = tuple[Path, dict[str, str]]


def test_loads_what_is_missing_and_only_then(archived: Bundle) -> None:
    """CS-15: the references come from the archive, and loading happens once."""
    path, references = archived
    rehearsal = images("archive", "--check", images_archive=str(path))
    assert rehearsal.run.changed == 1
    assert rehearsal.refs == references
    assert not has(references["api"])

    assert images("archive", images_archive=str(path)).facts["source"] == "archive"
    assert all(has(reference) for reference in references.values())

    again = images("archive", images_archive=str(path))
    assert again.facts["present"] is True
    assert (again.run.changed, again.run.executions) == (0, 0)


def test_what_the_power_left_half_loaded_is_loaded_anew(archived: Bundle, tmp_path: Path) -> None:
    """BM-10: the engine lists such an image, and takes its empty files for whole."""
    path, references = archived
    # In place of the engine's own directory, where others would read it.
    note = tmp_path / "compose-stack.loading"

    def load() -> None:
        facts = {**docker_facts(), "images": [], "images_dir": str(tmp_path)}
        images("archive", images_archive=str(path), docker_facts=facts).run.succeeded()
        assert not note.exists()

    load()
    marker = Path(layer(references["nginx"]), "marker")
    content = marker.read_bytes()
    marker.write_bytes(b"")
    load()
    assert marker.read_bytes() == b"", "the engine repairs it by itself"
    note.write_text("".join(f"{reference}\n" for reference in references.values()))
    load()
    assert Path(layer(references["nginx"]), "marker").read_bytes() == content


def layer(reference: str) -> str:
    """The directory that holds the files of an image of one layer."""
    found = docker("image", "inspect", "--format={{.GraphDriver.Data.UpperDir}}", reference)
    if not Path(found).is_dir():
        pytest.skip("the engine keeps layers where this test does not know them")
    return found


def test_a_corrupt_archive_changes_nothing(archived: Bundle) -> None:
    path, references = archived
    flip_layer_byte(path)
    outcome = images("archive", images_archive=str(path))
    outcome.failed_saying("content its name promises", "make bundle")
    assert not any(has(reference) for reference in references.values())


def test_an_archive_without_an_image_is_refused(archived: Bundle) -> None:
    path, references = archived
    # As to a host elsewhere: the archive is copied there first, and goes again.
    images("archive", images_archive=str(path), _images_local=False).run.succeeded()
    assert not Path("/var/tmp/compose-stack-images.tar").exists()
    partial = [references[name] for name in NAMES if name != "nginx"]
    docker("save", "--output", str(path), *partial)
    docker("image", "rm", *references.values())
    outcome = images("archive", images_archive=str(path))
    outcome.failed_saying("needed are postgres, redis, rabbitmq, backup, nginx, api", "make bundle")
    assert not has(references["api"])


def test_an_archive_for_another_architecture_is_refused(tmp_path: Path) -> None:
    here = docker("version", "--format", "{{.Server.Arch}}")
    other = "arm64" if here == "amd64" else "amd64"
    references = [f"compose-stack/{name}:test-{uuid.uuid4().hex[:8]}" for name in NAMES]
    path = tmp_path / "images.tar"
    for reference in references:
        tiny_image(reference, platform=f"linux/{other}")
    docker("save", "--output", str(path), *references)
    docker("image", "rm", *references)
    outcome = images("archive", images_archive=str(path))
    outcome.failed_saying(f"for {other}", f"for {here}")
    assert not any(has(reference) for reference in references)


def flip_layer_byte(path: Path) -> None:
    with tarfile.open(path) as tar:
        layer = json.loads(read(tar, "manifest.json"))[0]["Layers"][0]
        position = tar.getmember(layer).offset_data + 600
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 0xFF]))


def read(tar: tarfile.TarFile, name: str) -> bytes:
    content = tar.extractfile(name)
    assert content is not None
    return content.read()


def cut(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.truncate(int(path.stat().st_size * share))

    return damage


def without_layer(path: Path) -> None:
    whole = path.with_suffix(".whole")
    shutil.move(path, whole)
    with tarfile.open(whole) as source, tarfile.open(path, "w") as target:
        layer = json.loads(read(source, "manifest.json"))[0]["Layers"][0]
        for member in source:
            if member.name != layer:
                content = source.extractfile(member)
                target.addfile(member, content)


def with_manifest(document: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = json.dumps(document).encode()
        with tarfile.open(path, "w") as tar:
            member = tarfile.TarInfo("manifest.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        cut(0.0),
        cut(0.2),
        cut(0.5),
        cut(0.7),
        without_layer,
        with_manifest({"no": "list"}),
        with_manifest([{"RepoTags": ["a:1"]}]),
        lambda path: path.write_bytes(b"\x1f\x8b not a tar archive" * 100),
        lambda path: path.unlink(),
    ],
    ids=[
        "empty",
        "a fifth",
        "half",
        "seven tenths",
        "a layer is missing",
        "no manifest",
        "manifest without layers",
        "something else",
        "nothing there",
    ],
)
def test_a_damaged_archive_is_told_at_once(
    archived: Bundle, damage: Callable[[Path], object]
) -> None:
    path, _references = archived
    damage(path)
    with pytest.raises(AnsibleError, match="make bundle"):
        image_archive.inspect(path, verify=False)


def test_a_whole_archive_is_described(archived: Bundle) -> None:
    path, references = archived
    found = image_archive.inspect(path, verify=True)
    assert found["names"] == references
    assert found["architectures"] == [docker("version", "--format", "{{.Server.Arch}}")]
    assert found["size"] == path.stat().st_size
