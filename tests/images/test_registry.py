"""Images from a registry: pulls, and everything that may go wrong with them (issue item 3)."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
import uuid
from typing import TYPE_CHECKING, NoReturn

import pytest

from plugins.modules import registry_ping
from tests.harness import playbook
from tests.images.conftest import LOCALHOST, PREFIX, docker, has, images, tiny_image, variables_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.docker


def test_pulls_by_tag_and_digest_once(pushed: dict[str, str]) -> None:
    """CS-15: what is there is not fetched again, and knowing that costs no execution."""
    rehearsal = images("registry", "--check", **variables_of(pushed))
    assert rehearsal.run.changed == 1
    assert rehearsal.facts == {
        "refs": pushed, "source": "registry", "present": False, "left_out": {},
    }  # fmt: skip
    assert not any(has(reference) for reference in pushed.values())

    first = images("registry", **variables_of(pushed))
    assert first.facts["present"] is True
    assert all(has(reference) for reference in pushed.values())

    second = images("registry", **variables_of(pushed))
    assert second.refs == pushed
    assert (second.run.changed, second.run.executions) == (0, 0)


def test_application_is_built_on_the_registry_python(
    registry: str, pushed: dict[str, str], tmp_path: Path
) -> None:
    """CS-4: without api_image the application is built, on images_python by its digest."""
    context = tmp_path / "app"
    context.mkdir()
    (context / "Dockerfile").write_text(
        "ARG PYTHON_IMAGE\nARG BUILD_IMAGE\n"
        "FROM ${BUILD_IMAGE} AS build\nFROM ${PYTHON_IMAGE}\nCOPY --from=build /marker /built\n"
    )
    variables = {
        **variables_of(pushed),
        "api_image": "",
        "images_python": pushed["api"],
        "_images_application": str(context),
    }
    built = images("registry", **variables)
    reference = built.refs["api"]
    try:
        assert reference.startswith("compose-stack/api:")
        assert has(reference)
        assert images("registry", **variables).run.changed == 0
    finally:
        docker("image", "rm", reference, check=False)


@pytest.mark.parametrize("wrong", [":unknown", f":1@sha256:{'1' * 64}"], ids=["tag", "digest"])
def test_an_unknown_image_is_named(pushed: dict[str, str], wrong: str) -> None:
    wanted = {**pushed, "redis": pushed["redis"].split(":1@")[0] + wrong}
    outcome = images("registry", **variables_of(wanted))
    outcome.failed_saying(
        wanted["redis"], "no image with that name, tag or digest", "Remedy:", "Nothing that runs"
    )


def test_an_image_for_another_machine_is_named(registry: str, pushed: dict[str, str]) -> None:
    """BM-10: before anything is started that could not run."""
    tag = f"{registry}/{uuid.uuid4().hex[:8]}/redis:1"
    tiny_image(tag, platform="linux/s390x")
    docker("push", "--quiet", tag)
    docker("image", "rm", "--force", tag)
    for _ in ("at first", "and again"):
        outcome = images("registry", **variables_of({**pushed, "redis": tag}))
        outcome.failed_saying(tag, "does not exist for this machine's architecture", "Remedy:")


def test_a_registry_that_is_down_is_named(pushed: dict[str, str]) -> None:
    outcome = images("registry", **{**variables_of(pushed), "nginx_image": "127.0.0.1:9/nginx:1"})
    outcome.failed_saying("127.0.0.1:9/nginx:1", "cannot be reached", "stack_image_source")


class Faulty(http.server.BaseHTTPRequestHandler):
    """A registry that demands a login under /v2/private and alters what lies under /v2/altered."""

    media_type = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = json.dumps({"schemaVersion": 2, "mediaType": media_type}).encode()

    def do_GET(self) -> None:
        if "/private/" in self.path:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="test"')
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", self.media_type)
        self.send_header("Content-Length", str(len(self.manifest)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.manifest)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def faulty() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_a_login_is_asked_for(pushed: dict[str, str], faulty: str) -> None:
    variables = {**variables_of(pushed), "redis_image": f"{faulty}/private/redis:1"}
    images("registry", **variables).failed_saying("demands a login", "docker login")


def test_an_altered_download_is_refused(pushed: dict[str, str], faulty: str) -> None:
    reference = f"{faulty}/altered/redis:1@sha256:{'2' * 64}"
    variables = {**variables_of(pushed), "redis_image": reference}
    images("registry", **variables).failed_saying("not what the digest promises", "proxy")


@pytest.fixture
def silent() -> Iterator[str]:
    """A registry that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


class TestAuto:
    def test_takes_the_registry_when_it_answers(self, pushed: dict[str, str]) -> None:
        outcome = images("auto", **variables_of(pushed), images_revision=uuid.uuid4().hex)
        assert outcome.facts["source"] == "registry"
        assert outcome.refs == pushed

    def test_asks_nobody_when_images_are_there(
        self, pushed: dict[str, str], distro: dict[str, str], silent: str
    ) -> None:
        there = images("auto")
        assert there.facts["source"] == "distro"
        assert (there.run.changed, there.run.executions) == (0, 0)

        images("registry", **variables_of(pushed)).run.succeeded()
        there = images("auto", **variables_of(pushed))
        assert there.facts["source"] == "registry"
        assert (there.run.changed, there.run.executions) == (0, 0)

    def test_gives_up_after_five_seconds(self, silent: str) -> None:
        # A revision that nobody built, so that nothing on this machine decides.
        variables = {"postgres_image": f"{silent}/p:1", "images_revision": uuid.uuid4().hex}
        outcome = images("auto", "--check", **variables)
        assert outcome.facts["source"] == "distro"
        assert outcome.run.executions == 1

    def test_five_seconds_are_five_seconds(
        self, silent: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        began = time.monotonic()
        answers, reason = registry_ping.ping(f"http://{silent}/v2/", 5)
        assert not answers
        assert silent in reason
        assert time.monotonic() - began < 5.5

        # A resolver that hangs counts too.
        hung = threading.Event()

        def resolve(*_arguments: object, **_options: object) -> NoReturn:
            hung.wait(10)
            raise socket.gaierror("hung")

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        began = time.monotonic()
        assert registry_ping.ping("https://registry.invalid/v2/", 0.5)[0] is False
        assert time.monotonic() - began < 1.5
        hung.set()


@pytest.mark.parametrize(
    ("reference", "url"),
    [
        ("redis:8", "https://registry-1.docker.io/v2/"),
        ("docker.io/library/redis:8@sha256:00", "https://registry-1.docker.io/v2/"),
        ("timescale/timescaledb:2", "https://registry-1.docker.io/v2/"),
        ("ghcr.io/owner/image:1", "https://ghcr.io/v2/"),
        ("registry:5000/image:1", "https://registry:5000/v2/"),
        ("localhost/image", "http://localhost/v2/"),
        ("127.0.0.1:5000/image", "http://127.0.0.1:5000/v2/"),
    ],
)
def test_the_registry_of_a_reference(reference: str, url: str) -> None:
    assert registry_ping.registry_url(reference) == url


def test_an_unknown_source_is_refused() -> None:
    images("internet").failed_saying("stack_image_source is 'internet'", "auto, registry, distro")


def test_bundle_keeps_the_digests_of_a_registry(pushed: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar"
    variables = {
        **LOCALHOST,
        **variables_of(pushed),
        "stack_image_source": "registry",
        "bundle_path": str(path),
    }
    expected = {
        name: f"compose-stack/{name}:{reference.split('sha256:')[1][:12]}"
        for name, reference in pushed.items()
    }
    try:
        made = playbook("inventories/local", name="bundle.yml", variables=variables).succeeded()
        assert all(reference in made.output for reference in expected.values())
        assert path.with_name("bundle.tar.sha256").read_text().endswith("  bundle.tar\n")
        again = playbook("inventories/local", name="bundle.yml", variables=variables).succeeded()
        assert again.changed == 0
        docker("image", "rm", *expected.values())
        loaded = images("archive", images_archive=str(path))
        assert loaded.refs == expected
        assert all(has(reference) for reference in expected.values())
    finally:
        docker("image", "rm", *expected.values(), check=False)


def test_tiny_images_differ() -> None:
    """The other tests rely on it: equal images would be there before they are pulled."""
    tiny_image(f"{PREFIX}/a:1")
    tiny_image(f"{PREFIX}/b:1")
    try:
        first, second = (
            docker("image", "inspect", "--format", "{{.Id}}", f"{PREFIX}/{name}:1") for name in "ab"
        )
        assert first != second
    finally:
        docker("image", "rm", f"{PREFIX}/a:1", f"{PREFIX}/b:1")
