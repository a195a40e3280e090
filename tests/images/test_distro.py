"""Images built on the host from Debian packages (issue item 3)."""

from __future__ import annotations

import json
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from tests.images.conftest import docker, images

if TYPE_CHECKING:
    from pathlib import Path

HARDENED = [
    "run", "--rm", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges",
    "--network=none", "--memory=256m", "--pids-limit=100", "--tmpfs=/tmp",
]  # fmt: skip

pytestmark = pytest.mark.docker


def inside(reference: str, script: str, *options: str) -> str:
    """Run a script as the image's own user, restricted like every container of the stack."""
    return docker(*HARDENED, *options, "--entrypoint=sh", reference, "-ec", dedent(script))


def test_nothing_is_built_twice(distro: dict[str, str]) -> None:
    """CS-15: with the images there the role executes nothing."""
    again = images("distro")
    assert again.refs == distro
    assert again.facts["left_out"] == {}
    assert (again.run.changed, again.run.executions) == (0, 0)


def test_a_rehearsal_builds_nothing() -> None:
    rehearsal = images("distro", "--check", images_revision="never built")
    assert rehearsal.facts["present"] is False
    assert rehearsal.run.changed == 1
    assert rehearsal.run.executions == 0


def test_a_rehearsal_needs_no_engine(tmp_path: Path) -> None:
    """What a bare host would get can be told, but nothing can be done there."""
    bare = {
        "docker_facts": {"images": []},
        "environment": {"DOCKER_HOST": f"unix://{tmp_path}/none.sock"},
    }
    assert images("distro", "--check", **bare).facts["present"] is False
    images("distro", **bare).failed_saying("Cannot connect to the Docker daemon")


def test_an_unreachable_mirror_is_named() -> None:
    outcome = images("distro", images_debian_mirror="http://127.0.0.1:9/debian")
    outcome.failed_saying(
        "Making the Debian base image failed", "cannot be reached", "images_debian_mirror"
    )


def test_a_failing_build_shows_the_end_of_its_log(distro: dict[str, str], tmp_path: Path) -> None:
    context = tmp_path / "app"
    context.mkdir()
    (context / "Dockerfile").write_text(
        "ARG PYTHON_IMAGE\nFROM ${PYTHON_IMAGE}\n"
        "RUN seq 1000 && echo No space left on device >&2 && false\n"
    )
    outcome = images("distro", _images_application=str(context))
    outcome.failed_saying("Building api failed: the disk is full", "Remedy: Free space", "1000")


class TestContract:
    """What the roles count on, and the official images keep as well."""

    def test_postgres(self, distro: dict[str, str]) -> None:
        """BM-5 and FS-6: PostgreSQL 17 with TimescaleDB, as uid 70 on a read-only root."""
        said = inside(
            distro["postgres"],
            """
            id -u; id -g; stat -c '%u:%g %a' /var/lib/postgresql/data
            for command in postgres initdb pg_ctl pg_isready psql pg_dump pg_dumpall; do
                command -v $command >/dev/null
            done
            initdb --locale-provider=builtin --builtin-locale=C.UTF-8 --encoding=UTF8 \\
                --data-checksums -A scram-sha-256 --username=postgres --pwfile=/etc/hostname \\
                --set shared_preload_libraries=timescaledb --set timescaledb.license=apache \\
                --set listen_addresses= --set unix_socket_directories=/tmp >/dev/null
            pg_ctl --silent --wait --log /tmp/log start
            export PGPASSWORD="$(cat /etc/hostname)"
            psql -h /tmp -U postgres -Atq -v ON_ERROR_STOP=1 <<'SQL'
            CREATE EXTENSION timescaledb;
            CREATE TABLE t (at timestamptz NOT NULL);
            SELECT create_hypertable('t', 'at') IS NOT NULL;
            SHOW data_checksums;
            SELECT upper('ä'), now() AT TIME ZONE 'Europe/Berlin' IS NOT NULL;
            SELECT current_setting('server_version_num')::int / 10000;
            SQL
            pg_ctl --silent stop
            """,
            "--tmpfs=/var/lib/postgresql/data:uid=70,gid=70,mode=0700",
            "--hostname=not-a-secret",
        )
        assert said.splitlines() == ["70", "70", "70:70 700", "t", "on", "Ä|t", "17"]

    def test_redis(self, distro: dict[str, str]) -> None:
        """FS-5 and FS-6: Redis 8 as uid 999, its data under /data."""
        said = inside(
            distro["redis"],
            """
            id -u; id -g; stat -c '%u:%g' /data
            redis-server --port 0 --unixsocket /tmp/s --dir /tmp --appendonly yes --daemonize yes \\
                >/dev/null
            until redis-cli -s /tmp/s ping 2>/dev/null; do sleep 0.1; done
            redis-cli -s /tmp/s info server | grep -o '^redis_version:8'
            """,
        )
        assert said.splitlines() == ["999", "1000", "999:1000", "PONG", "redis_version:8"]

    def test_rabbitmq(self, distro: dict[str, str]) -> None:
        """BM-4 and FS-6: RabbitMQ 4 as uid 999, with its plugins, and a cookie of nobody's."""
        said = inside(
            distro["rabbitmq"],
            """
            id -u; id -g; stat -c '%u:%g %a' /var/lib/rabbitmq; ls -A /var/lib/rabbitmq
            command -v rabbitmq-server
            ls /usr/lib/rabbitmq/lib/*/plugins | grep -Eo '^rabbitmq_(management|prometheus)-4'
            """,
        )
        assert said.splitlines() == [
            *("999", "999", "999:999 700", "/usr/lib/rabbitmq/bin/rabbitmq-server"),
            *("rabbitmq_management-4", "rabbitmq_prometheus-4"),
        ]

    def test_nginx(self, distro: dict[str, str]) -> None:
        """CS-8 and FS-6: nginx as uid 101 with the stream module, and wget for the health check."""
        said = inside(
            distro["nginx"],
            """
            id -u; id -g
            cat > /tmp/nginx.conf <<'CONF'
            pid /tmp/nginx.pid;
            error_log stderr warn;
            include /etc/nginx/modules-enabled/*.conf;
            events {}
            stream { server { listen unix:/tmp/stream.sock; return "stream"; } }
            http {
                include /etc/nginx/mime.types;
                access_log off;
                client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f;
                uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
                server { listen 127.0.0.1:8080; return 200 "served"; }
            }
            CONF
            nginx -t -q -c /tmp/nginx.conf
            nginx -c /tmp/nginx.conf
            wget -q -O - http://127.0.0.1:8080/; echo
            nginx -V 2>&1 | grep -o with-http_v2_module
            """,
        )
        assert said.splitlines() == ["101", "101", "served", "with-http_v2_module"]

    def test_api(self, distro: dict[str, str]) -> None:
        """CS-4: no compiler, no pip and no cache of it, no test code, not root."""
        said = inside(
            distro["api"],
            """
            id -u; id -g
            for command in python3 gunicorn alembic compose-app; do
                command -v $command
            done
            for command in gcc cc make pip pip3 git; do
                ! command -v $command
            done
            ! python3 -m pip --version 2>/dev/null
            python3 - <<'PY'
            import pathlib, sys
            assert sys.version_info[:2] == (3, 13), sys.version
            import compose_app
            venv = pathlib.Path("/opt/venv")
            print([str(p) for p in venv.rglob("*") if p.name in ("tests", "test", "testing")])
            print([str(p) for p in venv.rglob("*") if p.stat().st_uid == 10001])
            PY
            """,
        )
        # Nobody but root may look there: to others, everything is missing.
        inside(distro["api"], "ls /root && test ! -e /root/.cache", "--user=0")
        commands = ["python3", "gunicorn", "alembic", "compose-app"]
        paths = [f"/opt/venv/bin/{command}" for command in commands]
        assert said.splitlines() == ["10001", "10001", *paths, "[]", "[]"]

    @pytest.mark.parametrize("name", ["postgres", "redis", "rabbitmq", "nginx", "api"])
    def test_images_start_nothing_as_root(self, distro: dict[str, str], name: str) -> None:
        """FS-6 and FS-8: no root by default, no entry point, no secret in the environment."""
        config = json.loads(
            docker("image", "inspect", "--format", "{{json .Config}}", distro[name])
        )
        assert config["User"].split(":")[0] not in ("", "0", "root")
        assert not config.get("Entrypoint")
        assert {item.split("=")[0] for item in config["Env"]} <= {
            "PATH", "PGDATA", "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE",
        }  # fmt: skip

    def test_sizes(self, distro: dict[str, str]) -> None:
        """CS-4: the application at most 160 MB, all core images together at most 450 MB on disk."""
        layers: dict[str, int] = {}
        for reference in distro.values():
            shown = json.loads(docker("image", "inspect", reference))[0]
            digests = shown["RootFS"]["Layers"]
            history = docker("history", "--human=false", "--format", "{{.Size}}", reference)
            sizes = [int(size) for size in reversed(history.splitlines()) if int(size) > 0]
            # Steps that changed nothing have a layer and no size.
            layers.update(zip(digests, sizes, strict=False))
        total = sum(layers.values()) / 1e6
        api = int(docker("image", "inspect", "--format", "{{.Size}}", distro["api"])) / 1e6
        assert api <= 160, f"{api:.0f} MB"
        assert total <= 450, f"{total:.0f} MB"
