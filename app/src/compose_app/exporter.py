"""prometheus-flask-exporter, set up: the registry and `/metrics`.

It counts and times requests as well, unless told not to. Its hooks take several times what the
metrics themselves take (`make bench` of the repository says how much), and its request counter has
no path: `scope` counts and times every answer instead.
"""

from __future__ import annotations

import functools
import os
import re

from flask import Flask, Request
from prometheus_client import CollectorRegistry
from prometheus_flask_exporter import PrometheusMetrics
from prometheus_flask_exporter.multiprocess import GunicornInternalPrometheusMetrics

from compose_app import metrics

UNMATCHED = "<unmatched>"
"""Path label of a request that no route matches: raw paths would be labels without bound."""


class _GunicornExporter(GunicornInternalPrometheusMetrics):
    """Many processes: a scrape of any worker merges the files of all."""

    def generate_metrics(
        self, accept_header: str | None = None, names: list[str] | None = None
    ) -> tuple[str, str]:
        """Everything, also where `name[]` asks for less.

        With several processes the exporter raises AttributeError for names.
        """
        text, content_type = super().generate_metrics(accept_header)  # type: ignore[no-untyped-call]
        return text, content_type


@functools.cache
def _template(rule: str) -> str:
    return re.sub(r"<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule)


def path(request: Request) -> str:
    """The template of the route that a request matches, or UNMATCHED."""
    rule = request.url_rule
    return _template(rule.rule) if rule else UNMATCHED


def init_app(app: Flask) -> None:
    """Serve `/metrics`."""
    registry = CollectorRegistry()  # the default one has collectors of the process
    for metric in metrics.ALL:
        registry.register(metric)
    multiprocess = "PROMETHEUS_MULTIPROC_DIR" in os.environ
    exporter = (_GunicornExporter if multiprocess else PrometheusMetrics)(
        app=None, registry=registry, export_defaults=False
    )
    exporter.init_app(app)
