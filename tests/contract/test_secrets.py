"""CS-15, FS-8: no secret in the repository."""

from __future__ import annotations

import math
import re
from collections import Counter

from .conftest import ROOT, tracked

BINARY = {".png", ".ico", ".woff2", ".gz", ".tar"}
# Hashes of public things: lock files, image digests, commits of CI actions.
PUBLIC = re.compile(r"(sha256[:=]|@)[0-9a-f]{40,64}")
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n[A-Za-z0-9+/=]{20,}")
ASSIGNED = re.compile(
    r"""(?ix) \b [\w-]* (?:password|passwd|secret|token|api_?key) [\w-]* ["']?
        \s* [:=] \s* ["']? ([^\s"'{}$<>()\[\],;]{8,})"""
)
CREDENTIALS_IN_URL = re.compile(r"://[^/\s:@\"'{$<%]+:([^/\s:@\"'{$<%]{4,})@")
TOKEN = re.compile(r"[A-Za-z0-9+/_=-]{32,}")
# Words that stand where a value would and are none.
INNOCENT = re.compile(
    r"(?i)^(/|\.|true|false|none|null|str\b|example|change|redacted|\*+|secret_|_secret|vault|postgres_|redis_|default|[0-9a-f]{1,16}$|scram-sha-256$|[a-z_]+\.[a-z_.]+|[a-z]+(_[a-z]+)+$|[a-z-]+$)"
)


def entropy(text: str) -> float:
    counts = Counter(text)
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())


def texts() -> list[tuple[str, str]]:
    found = []
    for path in tracked():
        if path.suffix in BINARY or path.name.endswith(".lock"):
            continue
        found.append((str(path.relative_to(ROOT)), path.read_text(errors="replace")))
    return found


def test_no_private_key() -> None:
    for name, text in texts():
        assert not PRIVATE_KEY.search(text), name


def test_no_password_is_assigned() -> None:
    for name, text in texts():
        if name.startswith(("tests/", "app/tests/")) or "/tests/" in name:
            continue
        for match in ASSIGNED.finditer(text):
            value = match[1]
            # A word is a name or a sentence; what is generated mixes letters and digits.
            mixed = re.search(r"\d", value) and re.search(r"[A-Za-z]", value)
            assert not mixed or INNOCENT.match(value) or entropy(value) < 3, f"{name}: {match[0]}"


def test_no_credentials_in_urls() -> None:
    for name, text in texts():
        for match in CREDENTIALS_IN_URL.finditer(text):
            if "/tests/" in f"/{name}" and len(match[1]) < 12:
                continue
            raise AssertionError(f"{name}: {match[0]}")


def test_no_random_looking_text() -> None:
    """A generated secret is long and has no pattern; identifiers and paths have words in them."""
    for name, text in texts():
        for token in TOKEN.findall(PUBLIC.sub("", text)):
            varied = (
                re.search(r"[A-Z]", token)
                and re.search(r"[a-z]", token)
                and re.search(r"\d", token)
            )
            worded = re.search(r"[a-z]{5,}|[A-Z]{5,}|[_/-]", token)
            assert not varied or worded or entropy(token) < 4.2, f"{name}: {token}"


def test_the_scan_sees_what_it_should() -> None:
    """The four patterns find the four kinds of secret."""
    key = "-----BEGIN " + "PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0B"
    assert PRIVATE_KEY.search(key)
    found = ASSIGNED.search("db_password: " + "hT7rq2Lw9zXc")
    assert found
    assert not INNOCENT.match(found[1])
    assert CREDENTIALS_IN_URL.search("postgresql://" + "app:hunter22@db/app")
    assert entropy("q8ZsT3vKp0WmX5yL" + "dR7uFa2NcJ4hGb6E") > 4.2
