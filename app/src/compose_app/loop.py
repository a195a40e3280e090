"""What the processes beside the API are: one thread that turns until it is told to stop."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Protocol

import structlog
from prometheus_client import start_http_server

from compose_app import logging, metrics_server
from compose_app.config import ProcessSettings

RETRY = 1.0
"""Seconds before the next turn when a server does not answer."""


class Work(Protocol):
    """What a process does."""

    @property
    def outages(self) -> tuple[type[Exception], ...]:
        """What `step` raises when a server does not answer, or not as it should."""

    def step(self) -> float:
        """Do what is due; a stop waits for the end of it.

        Returns:
            Seconds after which to come again; 0 for at once.

        Raises:
            one of `outages`.
        """

    def lost(self) -> None:
        """Prepare for another attempt, after such an error."""

    def leave(self) -> None:
        """Close what is open: no step follows. Raises nothing."""


class Loop:
    """Turns until `stop`."""

    def __init__(self, work: Work, name: str, run_dir: Path) -> None:
        """Note in `run_dir`, in `compose-app.<name>`, when the loop has last turned.

        The file is not there before a first turn has succeeded.
        """
        self._work = work
        self._alive = run_dir / f"compose-app.{name}"
        self._log = structlog.get_logger(f"compose_app.{name}")
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Have `run` return after the step under way."""
        self._stopping.set()

    def run(self) -> None:
        """Work until told to stop; what fails for want of a server is tried again."""
        down = working = False
        while not self._stopping.is_set():
            try:
                pause = self._work.step()
            except self._work.outages as error:
                if not down:
                    self._log.warning("dependency lost", error=str(error).strip())
                down = True
                self._work.lost()
                pause = RETRY
            else:
                if down:
                    self._log.info("dependency back")
                down = False
                working = True
            if working:
                self._alive.touch()
            self._stopping.wait(pause)
        self._work.leave()


def main(work: Work, name: str, settings: ProcessSettings) -> int:
    """Work until SIGTERM or SIGINT, with a metrics listener beside it.

    Returns:
        0.
    """
    logging.configure(settings.log_level)
    if settings.metrics_port:
        host = settings.metrics_host
        address = metrics_server.own_address(host) if host else metrics_server.LOOPBACK
        start_http_server(settings.metrics_port, address)
    loop = Loop(work, name, settings.run_dir)

    def stop(_number: int, _frame: FrameType | None) -> None:
        loop.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    log = structlog.get_logger(f"compose_app.{name}")
    log.info(f"{name} started")
    loop.run()
    log.info(f"{name} stopped")
    return 0
