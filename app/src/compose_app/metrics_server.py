"""The metrics listener of the gunicorn master, which only the monitoring network reaches."""

from __future__ import annotations

import ipaddress
import socket

from prometheus_flask_exporter.multiprocess import GunicornPrometheusMetrics

LOOPBACK = "127.0.0.1"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


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


def address_in(subnet: Network) -> str:
    """Find the address this host has in a network.

    Raises:
        OSError: it has none.
    """
    address = own_address(str(next(subnet.hosts())))
    if ipaddress.ip_address(address) not in subnet:
        raise OSError(f"no interface of this host is in {subnet} (METRICS_SUBNET)")
    return address


def start(port: int, subnet: Network | None, host: str | None) -> str:
    """Serve the metrics of all workers from a daemon thread.

    Args:
        port: TCP port.
        subnet: the network to be reached from.
        host: without subnet, a name in that network; without either, loopback is bound.

    Returns:
        The address listened on, `host:port`.

    Raises:
        OSError: there is no such address, or it cannot be bound.
    """
    if subnet:
        address = address_in(subnet)
    elif host:
        address = own_address(host)
    else:
        address = LOOPBACK
    GunicornPrometheusMetrics.start_http_server_when_ready(port, address)
    return f"{address}:{port}"
