"""prometheus-flask-exporter, set up: the registry, the request histogram and `/metrics`.

The exporter's own request counter, http_request_total, has no path. `metrics.REQUESTS` takes its
place, counted in `scope` for every answer, and what else the exporter would add is left out.
"""

from __future__ import annotations

import functools
import os
import re
from typing import Any

from flask import Flask, Request, request
from prometheus_client import CollectorRegistry
from prometheus_flask_exporter import NO_PREFIX, PrometheusMetrics
from prometheus_flask_exporter.multiprocess import GunicornInternalPrometheusMetrics

from compose_app import metrics

UNMATCHED = "<unmatched>"
"""Path label of a request that no route matches: raw paths would be labels without bound."""
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
"""Seconds."""


class _Exporter(PrometheusMetrics):
    """One process, as in tests: the values are in memory.

    What is left out keeps its HELP and TYPE lines here, without a sample; with many processes
    nothing of it is seen.
    """

    def info(self, *_: Any, **__: Any) -> None:
        """Leave out exporter_info, the only Info there would be."""

    @staticmethod
    def _not_yet_handled(tracking_key: str) -> bool:
        """Leave out http_request_total: the exporter is told that it has been counted."""
        if tracking_key == "total_reported":
            return False
        return bool(PrometheusMetrics._not_yet_handled(tracking_key))

    def generate_metrics(
        self, accept_header: str | None = None, names: list[str] | None = None
    ) -> tuple[str, str]:
        """Everything, also where `name[]` asks for less.

        With several processes the exporter raises AttributeError for names.
        """
        text, content_type = super().generate_metrics(accept_header)  # type: ignore[no-untyped-call]
        return text, content_type


class _GunicornExporter(_Exporter, GunicornInternalPrometheusMetrics):
    """Many processes: a scrape of any worker merges the files of all."""


@functools.cache
def _template(rule: str) -> str:
    return re.sub(r"<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule)


def path(request: Request) -> str:
    """The template of the route that a request matches, or UNMATCHED.

    The exporter names the label after this function.
    """
    rule = request.url_rule
    return _template(rule.rule) if rule else UNMATCHED


def _leave_out_exceptions(error: BaseException | None) -> None:
    """Keep http_request_exceptions_total out.

    The exporter counts there what no error handler has answered, and has already observed the
    answer made in its place.
    """
    if error:
        request.prom_do_not_track = True  # type: ignore[attr-defined]


def init_app(app: Flask) -> None:
    """Time every request and serve `/metrics`.

    To be called before hooks are registered that may refuse a request: those that follow are
    timed.
    """
    registry = CollectorRegistry()  # the default one has collectors of the process
    for metric in metrics.ALL:
        registry.register(metric)
    multiprocess = "PROMETHEUS_MULTIPROC_DIR" in os.environ
    exporter = (_GunicornExporter if multiprocess else _Exporter)(
        app=None,
        registry=registry,
        defaults_prefix=NO_PREFIX,
        group_by=path,
        buckets=BUCKETS,
    )
    exporter.init_app(app)  # type: ignore[no-untyped-call]
    app.teardown_request(_leave_out_exceptions)
