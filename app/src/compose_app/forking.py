"""SIGTERM in a worker that has just been forked.

Until a worker sets its own handlers it has the master's, which would swallow a SIGTERM: the master
would then wait out `graceful_timeout`. So the signal is held back across the fork, and ends a
worker that has no handler of its own yet.
"""

from __future__ import annotations

import os
import signal


def _let_through() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def hold_sigterm() -> None:
    """Hold SIGTERM back, in the master until the fork, in the worker until `default_sigterm`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def default_sigterm() -> None:
    """Let SIGTERM end the worker, also one that has come meanwhile."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _let_through()


os.register_at_fork(after_in_parent=_let_through)
