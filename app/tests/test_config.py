"""CS-12, FS-8: configuration is checked as a whole, and secrets come from files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from compose_app import config
from conftest import SRC


@pytest.fixture
def good(tmp_path: Path) -> dict[str, str]:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    return {
        "DATABASE_URL": "postgresql://app@postgres:5432/app",
        "DATABASE_PASSWORD_FILE": str(secret),
        "REDIS_CACHE_URL": "redis://app@redis-cache:6379/0",
        "REDIS_CACHE_PASSWORD_FILE": str(secret),
        "REDIS_QUEUE_URL": "redis://app@redis-queue:6379/0",
        "REDIS_QUEUE_PASSWORD_FILE": str(secret),
    }


def problems(environ: dict[str, str]) -> list[str]:
    with pytest.raises(config.ConfigError) as raised:
        config.check(environ)
    return raised.value.problems


def test_good(good: dict[str, str]) -> None:
    """CS-12: complete; what is empty counts as absent; a newline is no part of a secret."""
    config.check({**good, "API_SCALE": "", "METRICS_HOST": ""})
    settings = config.Settings.from_environ(good)
    assert settings.database_password.get_secret_value() == "s3cret"
    assert "s3cret" not in repr(settings)


def test_everything_missing() -> None:
    """CS-12: all at once."""
    assert problems({}) == [
        "DATABASE_URL: is not set",
        "DATABASE_PASSWORD_FILE: is not set",
        "REDIS_CACHE_URL: is not set",
        "REDIS_CACHE_PASSWORD_FILE: is not set",
    ]


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("API_SLOT", "red", "blue"),
        ("API_SCALE", "0", "greater"),
        ("API_RELOAD", "perhaps", "boolean"),
        ("API_LOG_LEVEL", "loud", "debug"),
        ("WEB_CONCURRENCY", "many", "integer"),
        ("METRICS_PORT", "70000", "65535"),
        ("DATABASE_URL", "mysql://app@db/app", "postgresql://"),
        ("DATABASE_URL", "postgresql://app:pw@db/app", "holds a password"),
        ("DATABASE_URL", "postgresql:///app", "no host"),
        ("DATABASE_URL", "postgresql://app@db:port/app", "not a URL"),
        ("REDIS_CACHE_URL", "http://redis", "redis://"),
        ("DATABASE_PASSWORD_FILE", "/nonexistent", "No such file"),
        ("OPERATOR_PASSWORD_FILE", "/nonexistent", "No such file"),
        ("PROMETHEUS_URL", "prometheus:9090", "http://"),
        ("PROMETHEUS_URL", "http://user@prometheus:9090", "no user"),
        ("PROMETHEUS_URL", "http://prometheus:9090/?x=1", "no user, query"),
        ("MIGRATION_DATABASE_URL", "x", "postgresql://"),
    ],
)
def test_one_problem(good: dict[str, str], name: str, value: str, word: str) -> None:
    """CS-12: the variable and the reason are named."""
    named = [problem for problem in problems({**good, name: value}) if problem.startswith(name)]
    assert len(named) == 1
    assert word in named[0]
    assert "Value error" not in named[0]


@pytest.mark.parametrize("name", ["REDIS_QUEUE_URL", "REDIS_QUEUE_PASSWORD_FILE"])
def test_half_a_queue(good: dict[str, str], name: str) -> None:
    """CS-12: an address is no use without its secret, nor the other way round."""
    (problem,) = problems({**good, name: ""})
    assert "both REDIS_QUEUE_URL and REDIS_QUEUE_PASSWORD_FILE" in problem
    config.check({**good, "REDIS_QUEUE_URL": "", "REDIS_QUEUE_PASSWORD_FILE": ""})


def test_empty_secret(good: dict[str, str], tmp_path: Path) -> None:
    """FS-8: an empty file is no secret."""
    (tmp_path / "secret").write_text("\n")
    assert any("is empty" in problem for problem in problems(good))


def test_command(good: dict[str, str]) -> None:
    """CS-12: `compose-app check-config` says so by its exit code and names every problem."""

    def check(environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "compose_app", "check-config"],
            env={"PYTHONPATH": str(SRC), **environ},
            capture_output=True,
            text=True,
            check=False,
        )

    assert check(good).returncode == 0
    bad = check({**good, "API_SLOT": "red", "DATABASE_URL": "x"})
    assert bad.returncode == 2
    assert "API_SLOT" in bad.stderr
    assert "DATABASE_URL" in bad.stderr
    assert "Traceback" not in bad.stderr
