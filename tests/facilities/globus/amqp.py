"""Message queues of the web service: names, publishing with confirmation, a consumer of results."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import pika
from pika.adapters.blocking_connection import BlockingChannel

log = logging.getLogger(__name__)

KINDS = ("results", "heartbeats")
T = TypeVar("T")
Receive = Callable[[bytes], None]


class Queues(Protocol):
    """Interface of the web service's queues; ``url`` and the names go to agents and clients."""

    url: str
    prefix: str

    def declare(self, queue: str) -> None: ...

    def delete(self, queue: str) -> None: ...

    def publish(self, queue: str, body: bytes, keep_s: float | None = None, **properties: Any) -> bool:
        """Put a message into a queue; return True if the queue exists."""
        ...

    def listen(self, receivers: Mapping[str, Receive]) -> None:
        """Pass the messages of each of ``KINDS`` to its receiver from now on, one after the other."""
        ...

    def close(self) -> None: ...


class MemoryQueues:
    """Queues without a broker: a test acts as the agent through ``taken`` and ``receive``."""

    url = "amqp://nobody@127.0.0.1:1/%2F"

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.queues: dict[str, list[tuple[bytes, dict[str, Any]]]] = {}
        self._receivers: Mapping[str, Receive] = {}

    def declare(self, queue: str) -> None:
        self.queues.setdefault(queue, [])

    def delete(self, queue: str) -> None:
        self.queues.pop(queue, None)

    def publish(self, queue: str, body: bytes, keep_s: float | None = None, **properties: Any) -> bool:
        if queue in self.queues:
            self.queues[queue].append((body, properties))
        return queue in self.queues

    def listen(self, receivers: Mapping[str, Receive]) -> None:
        self._receivers = receivers

    def close(self) -> None:
        """Do nothing: no connection is open."""

    def taken(self, queue: str) -> list[tuple[bytes, dict[str, Any]]]:
        """Return and remove the messages of a queue."""
        messages = self.queues[queue]
        self.queues[queue] = []
        return messages

    def receive(self, kind: str, body: bytes) -> None:
        """Pass a message from an agent to its receiver."""
        self._receivers[kind](body)


class RabbitQueues:
    """Queues of a RabbitMQ node; a prefix separates services that share a node.

    The agent only checks that the exchanges and queues it writes to exist, so they are made here.
    """

    def __init__(self, url: str, prefix: str = "") -> None:
        self.url, self.prefix = url, prefix
        self._lock, self._channel = threading.RLock(), None
        self._consumer: BlockingChannel | None = None
        self._closed = threading.Event()

    _channel: BlockingChannel | None

    def declare(self, queue: str) -> None:
        self._with_channel(lambda channel: channel.queue_declare(queue, durable=True))

    def delete(self, queue: str) -> None:
        self._with_channel(lambda channel: channel.queue_delete(queue))

    def publish(self, queue: str, body: bytes, keep_s: float | None = None, **properties: Any) -> bool:
        if keep_s is not None:
            properties["expiration"] = str(int(1000 * keep_s))
        stamped = pika.BasicProperties(delivery_mode=2, timestamp=int(time.time()), **properties)
        try:
            self._with_channel(lambda channel: channel.basic_publish("", queue, body, stamped, mandatory=True))
        except pika.exceptions.UnroutableError:
            return False
        return True

    def listen(self, receivers: Mapping[str, Receive]) -> None:
        self._with_channel(self._declare_shared)
        threading.Thread(target=self._consume, args=(receivers,), daemon=True, name="results").start()

    def close(self) -> None:
        self._closed.set()
        if self._consumer is not None:
            with suppress(pika.exceptions.AMQPError):
                self._consumer.connection.add_callback_threadsafe(self._consumer.stop_consuming)
        with self._lock, suppress(pika.exceptions.AMQPError):
            if self._channel is not None:
                self._channel.connection.close()

    def _declare_shared(self, channel: BlockingChannel) -> None:
        for kind in KINDS:
            name = self.prefix + kind
            channel.exchange_declare(name, "topic", durable=True)
            channel.queue_declare(name, durable=True)
            channel.queue_bind(name, name, routing_key=f"*.{kind}")

    def _with_channel(self, action: Callable[[BlockingChannel], T]) -> T:
        """Do something on the channel, once more on a new one if the broker has closed the old one."""
        with self._lock:
            for last in (False, True):
                try:
                    if self._channel is None or self._channel.is_closed:
                        self._channel = self._opened()
                        self._channel.confirm_delivery()
                    return action(self._channel)
                except pika.exceptions.UnroutableError:
                    raise
                except pika.exceptions.AMQPError:
                    self._channel = None
                    if last:
                        raise
        raise AssertionError("unreachable")

    def _opened(self) -> BlockingChannel:
        parameters = pika.URLParameters(self.url)
        parameters.heartbeat, parameters.blocked_connection_timeout = 0, 30
        return pika.BlockingConnection(parameters).channel()

    def _consume(self, receivers: Mapping[str, Receive]) -> None:
        while not self._closed.is_set():
            try:
                self._consumer = self._opened()
                self._consumer.basic_qos(prefetch_count=64)
                for kind, receive in receivers.items():
                    self._consumer.basic_consume(self.prefix + kind, acknowledging(receive))
                self._consumer.start_consuming()
                self._consumer.connection.close()
            except pika.exceptions.AMQPError:
                log.debug("the broker is away", exc_info=True)
                self._closed.wait(0.5)


def acknowledging(receive: Receive) -> Callable[..., None]:
    """Return a callback for pika that acknowledges a message after it is received; an error here loses only one."""

    def callback(channel: BlockingChannel, method: Any, _: Any, body: bytes) -> None:
        try:
            receive(body)
        except Exception:
            log.exception("a message from an agent")
        channel.basic_ack(method.delivery_tag)

    return callback
