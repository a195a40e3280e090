"""RabbitMQ: the queue of messages to be sent, and the one of those that nobody could."""

from __future__ import annotations

import logging
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError, ChannelClosed

TIMEOUT = 5.0
"""Seconds to connect, and to wait while the broker takes nothing for want of memory or disk."""
HEARTBEAT = 10
"""Seconds after two of which without a sign the other side is taken to be gone."""
DELIVERY_LIMIT = 20
"""How often a message is delivered to workers that die of it."""
GATHER = 0.01
"""Seconds to wait for another message that may be on its way."""
OUTAGES = (AMQPError, AMQPConnectorException, OSError)
"""What every method raises when the broker does not answer, or refuses."""

# It logs at length what it raises as well.
logging.getLogger("pika").setLevel(logging.CRITICAL)


class Delivery(NamedTuple):
    """A message in hand."""

    tag: int
    message_id: int | None
    """None if it does not name one."""
    reason: str
    """Why it is in the queue of the dead."""


class Broker:
    """The connection to RabbitMQ, opened when first used, and again after `close`."""

    def __init__(self, url: str, password: str, queue: str, prefetch: int = 1) -> None:
        """Take where it is, the name of the queue, and how many messages to have in hand."""
        parts = urlsplit(url)
        self._parameters = pika.ConnectionParameters(
            host=parts.hostname or "",
            port=parts.port or 5672,
            virtual_host=unquote(parts.path.removeprefix("/")) or "/",
            credentials=pika.PlainCredentials(unquote(parts.username or ""), password),
            heartbeat=HEARTBEAT,
            blocked_connection_timeout=TIMEOUT,
            socket_timeout=TIMEOUT,
            stack_timeout=2 * TIMEOUT,
            client_properties={"connection_name": f"compose-app {queue}"},
        )
        self._queue = queue
        self._dead = f"{queue}.dead"
        self._prefetch = prefetch
        self._connection: pika.BlockingConnection | None = None
        self._open: BlockingChannel | None = None

    def publish(self, ids: list[int]) -> None:
        """Put messages into the queue; on return the broker has written them down."""
        for message_id in ids:
            self._channel().basic_publish(
                "",
                self._queue,
                str(message_id).encode(),
                pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent),
                mandatory=True,
            )

    def take(self, limit: int, wait: float) -> list[Delivery]:
        """Take up to so many messages, waiting for the first one so many seconds."""
        taken: list[Delivery] = []
        channel = self._channel()
        while len(taken) < limit:
            patience = GATHER if taken else wait
            for method, _, body in channel.consume(self._queue, inactivity_timeout=patience):
                if method is None or body is None:
                    return taken
                taken.append(Delivery(method.delivery_tag, _message_id(body), ""))
                break
        return taken

    def take_dead(self) -> Delivery | None:
        """Take a message that was rejected, or that no worker has survived."""
        method, properties, body = self._channel().basic_get(self._dead)
        if method is None or body is None:
            return None
        headers = (properties.headers if properties else None) or {}
        return Delivery(
            method.delivery_tag, _message_id(body), str(headers.get("x-first-death-reason", ""))
        )

    def done(self, delivery: Delivery) -> None:
        """Take a message out of its queue."""
        self._channel().basic_ack(delivery.tag)

    def reject(self, delivery: Delivery) -> None:
        """Put a message into the queue of the dead."""
        self._channel().basic_reject(delivery.tag, requeue=False)

    def waiting(self) -> int:
        """Count the messages in the queue that nobody has in hand."""
        declared = self._channel().queue_declare(self._queue, passive=True)
        return int(declared.method.message_count)

    def breathe(self) -> None:
        """Let the broker know that somebody is there; to be called every few seconds."""
        self._channel()
        if self._connection:
            self._connection.process_data_events(0)

    def close(self) -> None:
        """Disconnect; what is in hand goes back to the queue."""
        connection, self._connection, self._open = self._connection, None, None
        if connection is not None and connection.is_open:
            try:
                connection.close()
            except OUTAGES:
                return

    def _channel(self) -> BlockingChannel:
        if self._open is None:
            self._connection = pika.BlockingConnection(self._parameters)
            channel = self._connection.channel()
            channel.confirm_delivery()
            channel.basic_qos(prefetch_count=self._prefetch)
            channel.queue_declare(self._dead, durable=True, arguments={"x-queue-type": "quorum"})
            channel.queue_declare(
                self._queue,
                durable=True,
                arguments={
                    "x-queue-type": "quorum",
                    "x-delivery-limit": DELIVERY_LIMIT,
                    "x-dead-letter-exchange": "",
                    "x-dead-letter-routing-key": self._dead,
                    # Kept until the other queue has it, which the next line is a condition of.
                    "x-dead-letter-strategy": "at-least-once",
                    "x-overflow": "reject-publish",
                },
            )
            self._open = channel
        if self._open.is_closed:
            raise ChannelClosed(0, "the broker has closed the channel")
        return self._open


def _message_id(body: bytes) -> int | None:
    return int(body) if body.isdigit() and len(body) < 20 else None
