"""The metrics listener of the gunicorn master, which only the monitoring network reaches."""

from __future__ import annotations

import ipaddress
import socket

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

LOOPBACK = "127.0.0.1"


def own_address(subnet: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    """Find this host's own address within a network; connecting a UDP socket sends nothing.

    Raises:
        OSError: no interface of this host is in `subnet`.
    """
    family = socket.AF_INET if subnet.version == 4 else socket.AF_INET6
    peer = str(next(subnet.hosts()))
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))
        address = str(probe.getsockname()[0])
    if ipaddress.ip_address(address) not in subnet:
        raise OSError(f"no interface of this host is in {subnet} (METRICS_SUBNET)")
    return address


def start(port: int, subnet: ipaddress.IPv4Network | ipaddress.IPv6Network | None) -> str:
    """Serve the metrics of all workers from a daemon thread.

    Args:
        port: TCP port.
        subnet: the network to be reached from; None binds to loopback.

    Returns:
        The address listened on, `host:port`.

    Raises:
        OSError: the address cannot be bound, or no interface is in `subnet`.
    """
    address = own_address(subnet) if subnet else LOOPBACK
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    start_http_server(port, address, registry)
    return f"{address}:{port}"
