"""What the stack takes: bytes of images on disk, bytes of memory while it idles."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from tests.harness import Engine, Stack

CGROUPS = Path("/sys/fs/cgroup")
ENGINE = Engine()
SMALL = 1 << 20
"""Whatever is larger in a saved image is a layer, not a description."""


def image_bytes(reference: str) -> int:
    return int(ENGINE.run("docker", "image", "inspect", "--format", "{{.Size}}", reference))


def together_bytes(references: list[str]) -> int:
    """Bytes of several images on disk; a layer that several have counts once.

    A layer is the same where it and all below it are the same. Only the configuration inside an
    image says which steps of its history made a layer, so each image is saved, and the layers
    in it skipped; `docker history` knows the sizes.
    """
    sizes: dict[tuple[str, ...], int] = {}
    for reference in references:
        configuration = _configuration(reference)
        layers = configuration["rootfs"]["diff_ids"]
        steps = _step_bytes(reference)
        history = configuration["history"]
        assert len(steps) == len(history), f"{reference}: {len(steps)} steps, {len(history)} told"
        made = [
            size
            for size, step in zip(steps, history, strict=True)
            if not step.get("empty_layer", False)
        ]
        assert len(made) == len(layers), f"{reference}: {len(made)} sizes, {len(layers)} layers"
        for index, size in enumerate(made):
            sizes[tuple(layers[: index + 1])] = size
    return sum(sizes.values())


def _step_bytes(reference: str) -> list[int]:
    """What each step of an image's history added, the first step first."""
    listed = ENGINE.json_lines(
        "docker", "history", "--no-trunc", "--human=false", "--format", "{{json .}}", reference
    )
    return [int(step["Size"]) for step in reversed(listed)]


def _configuration(reference: str) -> dict[str, Any]:
    small: dict[str, bytes] = {}
    with subprocess.Popen(
        ["docker", "image", "save", reference], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                if member.isfile() and member.size < SMALL:
                    content = archive.extractfile(member)
                    assert content is not None
                    small[member.name] = content.read()
    assert process.returncode == 0, f"docker image save {reference}: {process.returncode}"
    (manifest,) = json.loads(small["manifest.json"])
    found: dict[str, Any] = json.loads(small[manifest["Config"]])
    return found


def memory(stack: Stack) -> tuple[dict[str, int], str]:
    """Bytes that each running container holds, and what was counted."""
    running = stack.containers(running=True)
    from_cgroups = {name: _cgroup_bytes(item["State"]["Pid"]) for name, item in running.items()}
    known = {name: value for name, value in from_cgroups.items() if value}
    if len(known) == len(running):
        return known, "control groups: anonymous memory and mapped pages"
    shares = {name: _proportional_bytes(item["Id"]) for name, item in running.items()}
    return shares, "proportional set size of the processes"


def _cgroup_bytes(pid: int) -> int | None:
    """Memory in use, without what the kernel keeps of files and would give back.

    Files on a tmpfs are such a cache, too: the databases of a test lie on one.
    """
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            file, names = CGROUPS / "memory", ("total_rss", "total_mapped_file")
        elif number == "0" and (CGROUPS / "cgroup.controllers").exists():
            file, names = CGROUPS, ("anon", "file_mapped")
        else:
            continue
        statistics = file / path.lstrip("/") / "memory.stat"
        if not statistics.exists():
            continue
        values = dict(row.split() for row in statistics.read_text().splitlines())
        return sum(int(values[name]) for name in names)
    return None


def _proportional_bytes(container: str) -> int:
    total = 0
    for pid in ENGINE.run("docker", "top", container, "-o", "pid").split()[1:]:
        for row in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if row.startswith("Pss:"):
                total += int(row.split()[1]) * 1024
    return total
