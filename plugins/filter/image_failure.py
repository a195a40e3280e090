"""Cause and remedy of a failed pull, build or load of an image."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

LAST_LINES = 25


class Cause(NamedTuple):
    signs: tuple[str, ...]
    cause: str
    remedy: str


# The first sign that is found in the output decides: from the specific to the general.
CAUSES = [
    Cause(
        signs=(r"no space left on device", r"not enough (free )?space"),
        cause="the disk is full",
        remedy="Free space where Docker keeps its data (docker info shows the directory), for "
        "instance with `docker image prune`, and run again.",
    ),
    Cause(
        signs=(r"toomanyrequests", r"too many requests", r"rate limit"),
        cause="the registry has had too many requests from here",
        remedy="Wait, log in (docker login) or name a mirror in the daemon's registry-mirrors; or "
        "set stack_image_source to distro or archive.",
    ),
    Cause(
        signs=(
            r"unauthorized",
            r"authentication required",
            r"no basic auth credentials",
            r"denied: ",
            r"access.* denied",
            r"403 forbidden",
        ),
        cause="the registry demands a login, or the image is not for this account",
        remedy="Log in on the host as the user that runs Docker (docker login), or correct the "
        "reference.",
    ),
    Cause(
        signs=(
            r"no matching manifest",
            r"no match for platform",
            r"does not match the specified platform",
            r"exec format error",
        ),
        cause="the image does not exist for this machine's architecture",
        remedy="Name an image made for several architectures, by the digest of its index.",
    ),
    Cause(
        signs=(
            r"manifest unknown",
            r"manifest for .* not found",
            r"repository .* not found",
            r"name unknown",
            r"[:@][\w.:-]+: not found",
        ),
        cause="the registry has no image with that name, tag or digest",
        remedy="Compare the reference with what the registry holds; a digest must be that of the "
        "tag's index.",
    ),
    Cause(
        signs=(
            r"digest mismatch",
            r"failed size validation",
            r"unexpected commit digest",
            r"content digest",
            r"invalid checksum",
            r"unexpected eof",
            r"verification failed for digest",
        ),
        cause="what arrived is not what the digest promises",
        remedy="A proxy or mirror on the way may alter downloads. Try again; if it stays, correct "
        "the digest.",
    ),
    Cause(
        signs=(
            r"no_pubkey",
            r"is not signed",
            r"release.* (is )?(expired|not valid)",
            r"missing key",
        ),
        cause="the Debian mirror's signature cannot be checked",
        remedy="Check the clock of the host, and that images_debian_mirror is a Debian mirror.",
    ),
    Cause(
        signs=(
            r"certificate_verify_failed",
            r"certificate verify failed",
            r"certificate signed by unknown authority",
            r"x509: ",
        ),
        cause="a certificate on the way is not trusted",
        remedy="Behind a proxy that intercepts TLS, name its CA bundle in images_ca_bundle (for "
        "builds) and add it to the host's trust store (for pulls).",
    ),
    Cause(
        signs=(
            r"no such host",
            r"temporary failure (in name resolution|resolving)",
            r"could not resolve",
            r"name or service not known",
            r"connection (refused|reset|timed out|failed)",
            r"no route to host",
            r"network is unreachable",
            r"i/o timeout",
            r"deadline exceeded",
            r"timeout exceeded",
            r"unable to connect",
            r"failed to fetch",
            r"server gave http response",
            r"newconnectionerror",
        ),
        cause="the server that serves it cannot be reached",
        remedy="Check name resolution and the way out (proxy, firewall, images_proxy, "
        "images_debian_mirror). Without a registry set stack_image_source to distro, without any "
        "network to archive.",
    ),
    Cause(
        signs=(r"unable to locate package", r"404 +not found"),
        cause="the Debian mirror lacks a package",
        remedy="Check images_debian_mirror and images_debian_suite; a mirror that is being updated "
        "is whole again soon.",
    ),
    Cause(
        signs=(r"cannot connect to the docker daemon", r"permission denied.*docker\.sock"),
        cause="the Docker Engine does not answer",
        remedy="See `docker info` on the host; the engine's log says why (journalctl -u docker).",
    ),
]
UNKNOWN = Cause((), "see the end of its output", "Run again when the cause is gone.")


def image_failure(result: dict[str, Any], action: str) -> str:
    """Say why the command failed, what to do, and how its output ended."""
    output = f"{result.get('stdout', '')}\n{result.get('stderr', '')}".strip()
    found = next(
        (
            cause
            for cause in CAUSES
            if any(re.search(sign, output, re.IGNORECASE) for sign in cause.signs)
        ),
        UNKNOWN,
    )
    lines = [line for line in output.splitlines() if line.strip()][-LAST_LINES:]
    return "\n".join(
        [
            f"{action} failed: {found.cause}.",
            f"Remedy: {found.remedy}",
            "Nothing that runs was touched. The output ended with:",
            *(f"  {line}" for line in lines or [str(result.get("msg", "(no output)"))]),
        ]
    )


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"image_failure": image_failure}
