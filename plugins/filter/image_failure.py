"""Cause and remedy of a failed pull, build or load of an image."""

from __future__ import annotations

import re
from typing import Any

LAST_LINES = 25

# The first expression that is found decides; the order is from the specific to the general.
CAUSES = [
    (
        r"no space left on device|not enough (free )?space|write error.*space",
        "the disk is full",
        "Free space where Docker keeps its data (docker info -f '{{.DockerRootDir}}'), for instance with"
        " `docker image prune`, and run again.",
    ),
    (
        r"toomanyrequests|too many requests|rate limit",
        "the registry has had too many requests from here",
        "Wait, log in (docker login) or name a mirror in the daemon's registry-mirrors; or set"
        " stack_image_source to distro or archive.",
    ),
    (
        r"unauthorized|authentication required|no basic auth credentials|denied|403 forbidden",
        "the registry demands a login, or the image is not for this account",
        "Log in on the host as the user that runs Docker (docker login), or correct the reference.",
    ),
    (
        r"no matching manifest|no match for platform|exec format error",
        "the image does not exist for this machine's architecture",
        "Name an image that is made for several architectures, by the digest of its index.",
    ),
    (
        r"manifest unknown|manifest for .* not found|repository .* not found|name unknown|: not found",
        "the registry has no image with that name, tag or digest",
        "Compare the reference with what the registry holds; a digest must be the one of the tag's index.",
    ),
    (
        r"digest mismatch|failed size validation|unexpected commit digest|content digest|invalid checksum"
        r"|unexpected eof|verification failed",
        "what arrived is not what the digest promises",
        "A proxy or mirror on the way may alter downloads. Try again; if it stays, correct the digest.",
    ),
    (
        r"NO_PUBKEY|not signed|SIGNATURE|InRelease.*(expired|not valid)|signatures were invalid|Missing key",
        "the Debian mirror's signature cannot be checked",
        "Check the clock of the host, and that images_debian_mirror is a Debian mirror.",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|certificate (verify failed|signed by unknown authority)|x509:",
        "a certificate on the way is not trusted",
        "Behind a proxy that intercepts TLS, name its CA bundle in images_ca_bundle (builds) and add it to"
        " the host's trust store (pulls).",
    ),
    (
        r"no such host|temporary failure (in name resolution|resolving)|could not resolve|name or service not known"
        r"|connection refused|no route to host|network is unreachable|i/o timeout|deadline exceeded"
        r"|connection (timed out|reset)|timeout exceeded|unable to connect|failed to fetch"
        r"|server gave http response|client\.timeout|connection failed|newconnectionerror",
        "the server that serves it cannot be reached",
        "Check name resolution and the way out (proxy, firewall, images_proxy, images_debian_mirror); without"
        " a registry set stack_image_source to distro, without any network to archive.",
    ),
    (
        r"unable to locate package|404 +not found",
        "the Debian mirror lacks a package",
        "Check images_debian_mirror and images_debian_suite; a mirror that is being updated is whole again soon.",
    ),
    (
        r"cannot connect to the docker daemon|is the docker daemon running|permission denied.*docker\.sock",
        "the Docker Engine does not answer",
        "See `docker info` on the host; the engine's log says why (journalctl -u docker).",
    ),
]


def image_failure(result: dict[str, Any], action: str) -> str:
    """Say why the command failed, what to do, and how its output ended."""
    output = f"{result.get('stdout', '')}\n{result.get('stderr', '')}".strip()
    cause, remedy = next(
        (
            (cause, remedy)
            for expression, cause, remedy in CAUSES
            if re.search(expression, output, re.IGNORECASE)
        ),
        ("see the end of its output", "Run again when the cause is gone."),
    )
    lines = [line for line in output.splitlines() if line.strip()][-LAST_LINES:]
    return "\n".join(
        [
            f"{action} failed: {cause}.",
            f"Remedy: {remedy}",
            "Nothing that runs was touched. The output ended with:",
            *(f"  {line}" for line in lines or [str(result.get("msg", "(no output)"))]),
        ]
    )


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"image_failure": image_failure}
