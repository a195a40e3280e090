"""The metrics listener of the gunicorn master, which only the monitoring network reaches."""

from __future__ import annotations

import socket

from prometheus_flask_exporter.multiprocess import GunicornPrometheusMetrics

LOOPBACK = "127.0.0.1"


def own_address(peer: str) -> str:
    """Find the address this host has in the network of a peer; no packet is sent.

    Args:
        peer: name or address.

    Raises:
        OSError: the name is unknown, or no route leads there.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def start(port: int, host: str | None) -> str:
    """Serve the metrics of all workers from a daemon thread.

    Args:
        port: TCP port.
        host: a name in the network to be reached from; without, loopback is bound.

    Returns:
        The address listened on, `host:port`.

    Raises:
        OSError: there is no such address, or it cannot be bound.
    """
    address = own_address(host) if host else LOOPBACK
    GunicornPrometheusMetrics.start_http_server_when_ready(port, address)
    return f"{address}:{port}"
