"""The table of figures, and the file it is kept in."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tests.harness import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One row. `met` is None where there is no aim, or nothing to hold against it."""

    what: str
    measured: str
    aim: str = ""
    met: bool | None = None

    def row(self) -> str:
        verdict = {None: "", True: "yes", False: "**no**"}[self.met]
        cells = (self.what, self.measured, self.aim, verdict)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(figures: list[Figure]) -> str:
    head = ["| What | Measured | Aim | Reached |", "|---|---|---|---|"]
    return "\n".join([*head, *(figure.row() for figure in figures)])


def report(figures: list[Figure], notes: str) -> str:
    return page("Measured", "make bench", f"{table(figures)}\n\n{notes}")


def page(title: str, verb: str, text: str) -> str:
    """A page of Markdown: what was measured, of which commit, when and where."""
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    written = f"`{verb}` wrote this page: commit {commit()}, {now}, {machine()}."
    return f"# {title}\n\n{written}\n\n{text}"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def commit() -> str:
    """The commit that is checked out, and whether the files differ from it."""
    name = _output("git", "rev-parse", "--short=12", "HEAD")
    if not name:
        return "unknown"
    dirty = _output("git", "status", "--porcelain", "--untracked-files=no")
    return f"`{name}`" + (" with local changes" if dirty else "")


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    engine = _output("docker", "version", "--format", "{{.Server.Version}}")
    compose = _output("docker", "compose", "version", "--short")
    return f"{os.cpu_count()} cores, {memory:.1f} GiB, Docker {engine}, Compose {compose}"


def _output(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
