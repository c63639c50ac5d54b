"""Gives jobs the secrets that they name, and what masks them in their lines.

A value is read when its job is sent; it lives in this process and in the job's archive alone. What
is stored is a fingerprint of it. So a worker that adopts the job after a restart knows whether it
still has what the job was given: if not, it could not mask what the job prints, and withholds it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ciworker.domain.job import Job, Kind
from ciworker.domain.masking import Mask
from ciworker.domain.secrets import AGENT, Secret, fingerprint
from ciworker.errors import StoreUnavailable
from ciworker.settings import Settings
from ciworker.source.secrets import Secrets, fingerprint_key, rules_of
from ciworker.source.shim import AGENT_SOCKET
from ciworker.telemetry import logger

MOST_MASKS = 64  # kept: most jobs are given what one before them was


@dataclass(frozen=True, slots=True)
class Grant:
    """What one attempt of a job is given.

    values, fingerprints: by name. mask: finds the values. left_out: a sentence for each name that
    it is not given. withheld: why its lines may not be shown; empty: they may.
    """

    values: Mapping[str, Secret] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    mask: Mask | None = None
    left_out: Sequence[str] = ()
    withheld: str = ""


NOTHING = Grant()


class Credentials:
    """Of one worker."""

    def __init__(self, settings: Settings, secrets: Secrets) -> None:
        """Read nothing yet.

        Args:
            settings: say who may have what.
            secrets: has the values.
        """
        self._secrets, self._rules = secrets, rules_of(settings)
        self._key_file = settings.secrets_key
        self._key: bytes | None = None
        self._reading_key = asyncio.Lock()  # the first to read the key makes it
        self._masks: OrderedDict[Sequence[str], Mask] = OrderedDict()

    async def grant(self, job: Job) -> Grant:
        """What a container that is about to be sent to is given.

        Raises:
            StoreUnavailable: the data folder cannot be written, or its key is damaged.
        """
        if not job.spec.secrets:
            return NOTHING
        values, left_out = dict[str, Secret](), []
        for name in filter(AGENT.__ne__, job.spec.secrets):
            value = self._secrets.value(name) if self._may_have(job, name) else None
            if value is not None:
                values[name] = value
            else:
                left_out.append(self._why_left_out(job, name))
        fingerprints, mask = await self._fingerprints(values), await self._mask(values)
        if self.agent(job) is not None:
            values[AGENT] = Secret(AGENT_SOCKET)
        elif AGENT in job.spec.secrets:
            left_out.append(f"{AGENT} names no socket here that this job may have")
        return Grant(values, fingerprints, mask, left_out)

    def agent(self, job: Job) -> str | None:
        """The socket on the worker's machine to mount into the job's container, if there is one.

        Its path stands in the container's configuration: it tells nothing to who cannot open it.
        """
        rule = self._rules.get(AGENT)
        wanted = AGENT in job.spec.secrets and rule is not None and rule.mount
        found = self._secrets.value(AGENT) if wanted and self._may_have(job, AGENT) else None
        return found.reveal() if found is not None and _is_socket(found.reveal()) else None

    async def granted(self, job: Job) -> Grant:
        """What a container was given in an earlier life of the worker, as far as it is known.

        Raises:
            StoreUnavailable: the data folder cannot be read, or its key is damaged.
        """
        if not job.spec.secrets:
            return NOTHING
        known = {AGENT, *job.granted}
        left_out = [f"{name} had no value" for name in job.spec.secrets if name not in known]
        found = {name: self._secrets.value(name) for name in job.granted}
        values = {name: value for name, value in found.items() if value is not None}
        fingerprints = await self._fingerprints(values)
        if changed := sorted(n for n, old in job.granted.items() if fingerprints.get(n) != old):
            names = ", ".join(changed)
            logger().error("the lines of a job are withheld: its secrets changed", names=names)
            return Grant(left_out=left_out, withheld=_withheld(names))
        return Grant(values, fingerprints, await self._mask(values), left_out)

    def _may_have(self, job: Job, name: str) -> bool:
        """As the settings are now: they may have changed since the job was submitted."""
        rule = self._rules.get(name)
        if rule is None:
            return False
        return rule.setup if job.kind is Kind.SETUP else job.source.get("kind") in rule.sources

    def _why_left_out(self, job: Job, name: str) -> str:
        if not self._may_have(job, name):
            return f"{name} is not for this job any more (secret_names)"
        return f"{name} {self._secrets.why_missing(name)}"

    async def _fingerprints(self, values: Mapping[str, Secret]) -> Mapping[str, str]:
        if not values:
            return {}
        key = await self._read_key()
        return {name: fingerprint(key, name, value) for name, value in values.items()}

    async def _read_key(self) -> bytes:
        async with self._reading_key:
            if self._key is None:
                try:
                    self._key = await asyncio.to_thread(fingerprint_key, self._key_file)
                except OSError as error:
                    raise StoreUnavailable(f"the data folder keeps no key: {error}") from error
            return self._key

    async def _mask(self, values: Mapping[str, Secret]) -> Mask | None:
        """To prepare one takes a millisecond for a token, and a hundred for a long key."""
        if not values:
            return None
        texts = tuple(sorted({value.reveal() for value in values.values()}))
        mask = self._masks.get(texts)
        if mask is None:
            mask = self._masks[texts] = await asyncio.to_thread(Mask, list(values.values()))
        self._masks.move_to_end(texts)
        if len(self._masks) > MOST_MASKS:
            self._masks.popitem(last=False)
        return mask


def _is_socket(path: str) -> bool:
    try:
        return Path(path).is_socket()
    except OSError:  # who may not look may not connect
        return False


def _withheld(names: str) -> str:
    return (
        f"what the job prints from here on is withheld: the worker restarted, and {names} is not "
        "what the job was given any more, so it could not be masked"
    )
