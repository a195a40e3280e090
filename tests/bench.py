"""Measure the stack on this machine and write the figures to docs/proofs/bench.md.

`make bench` deploys a stack of its own beside any other, measures, prints a Markdown table and
removes it. BARE=1 also times a bare machine to healthy HTTPS, every image built on the spot: some
minutes more. Machines are noisy: what is compared is measured in alternating pairs, and medians
are shown.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.harness import BIN, ROOT, Engine, Run, Site, Stack, playbook

PROJECT = "compose-stack-bench"
DIRECTORY = f"/opt/{PROJECT}"
INVENTORY = "inventories/local"
RESULT = ROOT / "docs" / "proofs" / "bench.md"
ENGINE = Engine()
SETTINGS: dict[str, Any] = {
    "stack_project": PROJECT,
    "stack_dir": DIRECTORY,
    "nginx_http_port": 19080,
    "nginx_https_port": 19443,
}
PAIRS = 3
LOAD_PAIRS = 6
LOAD_SECONDS = 5
CORES = len(os.sched_getaffinity(0))

Row = tuple[str, str, str]


def say(text: str) -> None:
    print(f"-- {text}", flush=True)


def site_yml(**variables: Any) -> Run:
    return playbook(INVENTORY, variables={**SETTINGS, **variables}, seconds=900).succeeded()


def clean() -> None:
    playbook(
        INVENTORY, name="clean.yml", variables={**SETTINGS, "clean_confirm": PROJECT}
    ).succeeded()


def from_bare_machine() -> Row:
    """A fresh container host; nothing is carried over to it but this machine's CA bundle."""
    say("bare machine to healthy HTTPS")
    host = Engine(("docker", "exec", "--interactive", "compose-stack-molecule"))
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "MOLECULE_EPHEMERAL_DIRECTORY": scratch}

        def molecule(verb: str) -> None:
            subprocess.run([str(BIN / "molecule"), verb], cwd=ROOT, env=environment, check=True)

        molecule("create")
        try:
            bundle = Path("/etc/ssl/certs/ca-certificates.crt").read_bytes()
            subprocess.run(
                [*host.prefix, "tee", "/etc/ssl/certs/ca-certificates.crt"],
                input=bundle,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            inventory = Path(scratch, "inventory")
            run = playbook(
                inventory, variables={"stack_image_source": "distro"}, seconds=1200
            ).succeeded()
        finally:
            molecule("destroy")
    return (
        "bare machine to healthy HTTPS, images built on the spot",
        f"{run.seconds:.0f} s",
        "300 s",
    )


def starting(stack: Stack) -> Row:
    """From nothing running, with the images there."""
    say("site.yml and plain compose from nothing running")
    ours, plain = [], []
    for _ in range(PAIRS):
        stack.compose("down")
        ours.append(site_yml().seconds)
        stack.compose("down")
        began = time.monotonic()
        stack.compose("up", "--detach", "--wait", "--quiet-pull")
        plain.append(time.monotonic() - began)
    mine, theirs = statistics.median(ours), statistics.median(plain)
    return (
        "images there, nothing running: `site.yml` / `docker compose up --wait`",
        f"{mine:.1f} s / {theirs:.1f} s",
        f"{1.5 * theirs + 10:.1f} s (1.5 plus 10 s)",
    )


def nothing_to_do() -> Row:
    say("site.yml with nothing to do")
    runs = [site_yml() for _ in range(PAIRS)]
    seconds = statistics.median(run.seconds for run in runs)
    changed = max(run.changed for run in runs)
    executions = max(run.executions for run in runs)
    measured = f"changed={changed}, {executions} module executions, {seconds:.1f} s"
    return ("nothing to do: `site.yml`", measured, "changed=0, at most 25, 12 s")


def one_change(stack: Stack) -> list[Row]:
    rows = []
    for what, variables, reach in (
        ("one setting of the cache", {"redis_cache_memory_mb": 160}, "one container"),
        ("one setting of nginx", {"nginx_hsts_seconds": 63072000}, "none, reloaded"),
    ):
        say(what)
        before = stack.lives(running=True)
        run = site_yml(**variables)
        after = stack.lives(running=True)
        touched = sorted(name for name in after if after[name] != before.get(name))
        shown = ", ".join(touched) or "none recreated"
        rows.append((f"changed: {what}", f"{shown}; {run.seconds:.1f} s", reach))
        site_yml()
    return rows


def image_sizes(stack: Stack) -> list[Row]:
    say("images on disk")
    images = {item["Image"] for item in stack.containers().values()}
    api = stack.one(stack.api_slot())["Image"]
    size = int(ENGINE.run("docker", "image", "inspect", "--format={{.Size}}", api))
    # An archive of several images holds each shared layer once.
    together = int(ENGINE.run("sh", "-c", 'docker save "$@" | wc -c', "sh", *images))
    return [
        ("application image", f"{size / 1e6:.0f} MB", "160 MB"),
        ("all core images, shared layers once", f"{together / 1e6:.0f} MB", "450 MB"),
    ]


def idle_memory(stack: Stack) -> Row:
    say("idle memory")
    time.sleep(20)
    names = [item["Id"] for item in stack.containers(running=True).values()]
    shown = ENGINE.run("docker", "stats", "--no-stream", "--format={{json .}}", *names)
    total = sum(
        mebibytes(json.loads(line)["MemUsage"].split(" / ")[0]) for line in shown.splitlines()
    )
    return ("core stack, idle memory", f"{total:.0f} MB", "250 MB")


def mebibytes(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)([KMG]?i?)B", text)
    assert match, text
    scale = {"": 1 / (1 << 20), "Ki": 1 / 1024, "Mi": 1, "Gi": 1024}
    return float(match[1]) * scale[match[2]]


def through_nginx(stack: Stack) -> Row:
    """The same image, workers and limits behind nginx with TLS, and bare on a TCP port."""
    say("GET item by id, through nginx and bare")
    # The limits are lifted for both alike: else the application's half a core is all that counts.
    site_yml(nginx_rate_limit=1000000, nginx_rate_burst=1000000, api_cpus=float(CORES))
    path = "/api/items/1"
    assert stack.site.get(path).status_code == 200
    name = f"{PROJECT}-bare"
    stack.compose(
        "run", "--detach", "--no-deps", f"--name={name}", "--env=API_SOCKET_DIR=/tmp",
        "--env=METRICS_PORT=0", stack.api_slot(), "gunicorn",
        "--config=python:compose_app.gunicorn_conf", "--bind=0.0.0.0:8000",
        "compose_app:create_app()",
    )  # fmt: skip
    try:
        networks = json.loads(ENGINE.run("docker", "inspect", name))[0]["NetworkSettings"][
            "Networks"
        ]
        bare = f"http://{networks[f'{PROJECT}_backend']['IPAddress']}:8000{path}"
        public = f"https://127.0.0.1:{stack.site.https_port}{path}"
        rates: dict[str, list[float]] = {bare: [], public: []}
        for url in (bare, public):
            wrk(url, 2)
        for _ in range(LOAD_PAIRS):
            for url, found in rates.items():
                found.append(wrk(url, LOAD_SECONDS))
    finally:
        ENGINE.run("docker", "rm", "--force", name)
    ratio = statistics.median(p / b for p, b in zip(rates[public], rates[bare], strict=True))
    ours, theirs = statistics.median(rates[public]), statistics.median(rates[bare])
    measured = f"{ratio:.2f} ({ours:.0f} / {theirs:.0f} requests/s)"
    return ("GET item by id through nginx with TLS / bare gunicorn", measured, "0.75")


def wrk(url: str, seconds: int) -> float:
    shown = ENGINE.run("wrk", "--threads=1", "--connections=16", f"--duration={seconds}s", url)
    assert "Non-2xx" not in shown, shown
    match = re.search(r"Requests/sec:\s+([\d.]+)", shown)
    assert match, shown
    return float(match[1])


def table(rows: list[Row]) -> str:
    commit = ENGINE.run("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD").strip()
    dirty = bool(
        ENGINE.run("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    )
    state = f"commit {commit}{' with changes' if dirty else ''}"
    lines = [
        "# Measured",
        "",
        f"By `make bench` on {datetime.now(UTC):%Y-%m-%d}, {state}, {CORES} cores.",
        "",
        "| what | measured | reach |",
        "|---|---|---|",
        *(f"| {what} | {measured} | {reach} |" for what, measured, reach in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    if os.geteuid() != 0:
        raise SystemExit("make bench deploys to this machine: run it as root")
    if shutil.which("wrk") is None:
        say("installing wrk")
        ENGINE.run("apt-get", "install", "--yes", "--quiet", "--no-install-recommends", "wrk")
    rows: list[Row] = []
    if os.environ.get("BARE"):
        rows.append(from_bare_machine())
    say("deploying")
    playbook(INVENTORY, name="build.yml", variables=SETTINGS, seconds=900).succeeded()
    clean()
    site_yml()
    site = Site("127.0.0.1", 19443, 19080, "localhost", Path(DIRECTORY, "tls", "live", "ca.pem"))
    stack = Stack(ENGINE, PROJECT, DIRECTORY, site)
    try:
        rows.append(starting(stack))
        rows.append(nothing_to_do())
        rows += one_change(stack)
        rows += image_sizes(stack)
        rows.append(idle_memory(stack))
        rows.append(through_nginx(stack))
    finally:
        clean()
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(table(rows))
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
