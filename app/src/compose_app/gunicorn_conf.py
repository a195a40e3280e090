"""gunicorn's configuration.

`gunicorn -c python:compose_app.gunicorn_conf` runs the API, or what API_APPLICATION names.

Names without underscore are gunicorn's settings (seconds where they are times) and hooks.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from gunicorn.glogging import Logger as _Logger

from compose_app import config as _config
from compose_app import forking as _forking
from compose_app import logging as _logging
from compose_app import sockets as _sockets

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker


class _Log(_Logger):
    """gunicorn's log without that of accesses, which it would format even for nobody to read."""

    def access(self, *_: Any) -> None:
        """Write nothing: nginx does."""


def _settings() -> _config.ServerSettings:
    try:
        _config.check()
        return _config.ServerSettings.from_environ()
    except _config.ConfigError as error:
        for problem in error.problems:
            print(f"compose-app: {problem}", file=sys.stderr)
        raise SystemExit(2) from None


def _claim(settings: _config.ServerSettings) -> tuple[int, int]:
    try:
        return _sockets.claim(settings.sockets, settings.application, settings.scale)
    except (_sockets.NoFreeIndex, OSError) as error:
        print(f"compose-app: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _empty_metrics_dir(settings: _config.ServerSettings) -> None:
    """Values of an earlier run would be added to this one's."""
    settings.metrics_dir.mkdir(parents=True, exist_ok=True)
    for file in settings.metrics_dir.glob("*.db"):
        file.unlink()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(settings.metrics_dir)


_log = logging.getLogger("gunicorn.error")
_server = _settings()
_empty_metrics_dir(_server)
_logging.configure(_server.log_level)
_index, _lock = _claim(_server)
_socket = _sockets.path(_server.sockets, _server.application, _index)

wsgi_app = {
    "api": "compose_app:create_app()",
    "query": "compose_app:create_query_app()",
}[_server.application]
bind = [f"unix:{_socket}"]
umask = 0o007
backlog = 512
workers = _server.workers
worker_class = "sync"
worker_tmp_dir = str(_server.worker_tmp_dir)
timeout = 30
# A request that was let in may take as long as any other, also while the instance is stopped.
graceful_timeout = timeout
limit_request_line = 8190
accesslog = None
logger_class = _Log
loglevel = _server.log_level
logconfig_dict = _logging.stdlib_config(_server.log_level)
control_socket_disable = True
reload = _server.reload
preload_app = not _server.reload


def when_ready(_server_: Arbiter) -> None:
    """Record the socket for the health check and open the metrics listener."""
    (_server.run_dir / _sockets.RECORD).write_text(str(_socket), encoding="utf-8")
    if _server.metrics_port:
        from compose_app import metrics_server

        try:
            address = metrics_server.start(_server.metrics_port, _server.metrics_host)
        except OSError as error:
            _log.error("metrics listener not started: %s", error)
        else:
            _log.info("metrics at http://%s/metrics", address)


def pre_fork(_server_: Arbiter, _worker: Worker) -> None:
    """Keep a SIGTERM for the worker until it can act on it."""
    _forking.hold_sigterm()


def post_fork(_server_: Arbiter, _worker: Worker) -> None:
    """Make a worker forget what it has of the master.

    Under reload, modules that the master has imported are imported afresh.
    """
    _forking.default_sigterm()
    if reload:
        for name in [name for name in sys.modules if name.partition(".")[0] == "compose_app"]:
            if name != __name__:
                del sys.modules[name]


def worker_exit(_server_: Arbiter, worker: Worker) -> None:
    """Sign off from PostgreSQL and Redis, and end at once.

    Clearing the interpreter takes a worker 0.3 s of CPU time and serves nothing.
    """
    for close in getattr(worker.wsgi, "extensions", {}).get("compose_app.close", ()):
        close()
    if worker.booted:  # never in the master, nor where the exit code says that booting failed
        os._exit(0)


def child_exit(_server_: Arbiter, worker: Worker) -> None:
    """Take a dead worker out of the gauges."""
    from prometheus_flask_exporter.multiprocess import GunicornPrometheusMetrics

    GunicornPrometheusMetrics.mark_process_dead_on_child_exit(worker.pid)
