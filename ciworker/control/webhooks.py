"""The webhooks of the settings: who is told what, and how that is signed."""

from collections.abc import Callable, Sequence
from datetime import datetime

from ciworker import __version__
from ciworker.control.deliveries import NotYet, Request, Undeliverable
from ciworker.domain.job import Job
from ciworker.domain.webhook import Delivery, Message, Subscriber, messages, signature
from ciworker.settings import Settings, WebhookEntry
from ciworker.units import KEY_PREFIX, key_of


class Webhooks:
    """Makes messages of changes, and requests of messages."""

    def __init__(self, settings: Settings, secret: Callable[[str], str | None]) -> None:
        """Take the settings.

        Args:
            settings: name the endpoints.
            secret: gives the values of those that they only name; asked anew for each request.
        """
        self._entries = {entry.called: entry for entry in settings.webhooks}
        self._subscribers = [Subscriber(name, e.events) for name, e in self._entries.items()]
        self._public = settings.public_url
        self._secret = secret

    def tell(self, job: Job, at: datetime) -> Sequence[Message]:
        """What the job's new status means for the endpoints."""
        return messages(job, at, self._subscribers, self._public)

    async def request(self, delivery: Delivery, now: datetime) -> Request:
        """Raises Undeliverable when nobody is told of it any more, NotYet without the secret."""
        name, body = delivery.message.endpoint, delivery.message.body
        entry = self._entries.get(name)
        if entry is None:
            raise Undeliverable(f"no webhook of the settings is called {name!r} any more")
        timestamp = int(now.timestamp())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"ciworker/{__version__}",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._key(entry), delivery.id, timestamp, body),
        }
        return Request(entry.url.get_secret_value(), headers, body)

    def _key(self, entry: WebhookEntry) -> bytes:
        text = entry.secret.get_secret_value()
        if text.startswith(KEY_PREFIX):
            return key_of(text)
        value = self._secret(text)
        if value is None:
            raise NotYet(f"the secret {text} has no value: set it in the worker's environment")
        try:
            return key_of(value)
        except ValueError as error:
            raise NotYet(f"the secret {text} {error}") from None
