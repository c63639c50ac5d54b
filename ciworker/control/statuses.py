"""Tells forges how the jobs of their commits stand.

Only those that a hook made: what else is submitted may name any commit, and a command of its own.

A message says only which job: what is sent is how that stands when it is sent, so that a message
that was held up never puts a status back.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import orjson

from ciworker import __version__
from ciworker.control.deliveries import NotYet, Request, Undeliverable
from ciworker.domain.forge import Forge, api_of, hook_event, status_call, token_header
from ciworker.domain.git import Remote, parse_remote
from ciworker.domain.job import Job
from ciworker.domain.webhook import Delivery, DeliveryKind, Message, page_of
from ciworker.settings import GitHost, Settings
from ciworker.store.jobs import Jobs

# Of a commit that the forge does not have; GitLab's, of a status that the commit has already.
NEVER = (400, 404, 422)


class Statuses:
    """Makes messages of changes, and requests of messages."""

    def __init__(self, settings: Settings, secret: Callable[[str], str | None]) -> None:
        """Take the settings.

        Args:
            settings: name the hosts that are to be told, in `git_hosts`.
            secret: gives the values of the tokens that they name.
        """
        self._hosts: Mapping[str, GitHost] = {
            place: host for place, host in settings.git_hosts.items() if host.status_token
        }
        self._public, self._secret = settings.public_url, secret

    def tell(self, job: Job, _at: datetime) -> Sequence[Message]:
        """One for the forge whose hook made the job, once its commit is pinned."""
        git = job.spec.git
        if git is None or git.commit is None or hook_event(job) is None:
            return ()
        place = parse_remote(git.url).place
        if place not in self._hosts:
            return ()
        return [Message(DeliveryKind.STATUS, place, f"job.{job.status}", job.id, b"")]

    async def request(self, delivery: Delivery, jobs: Jobs) -> Request:
        """How the job stands now.

        Raises:
            Undeliverable: the job or the host is gone, or no hook made the job.
            NotYet: the host's token has no value.
        """
        message = delivery.message
        job = await jobs.current(message.job) if message.job else None
        host = self._hosts.get(message.endpoint)
        if job is None or job.spec.git is None or job.spec.git.commit is None:
            raise Undeliverable("the job was removed meanwhile")
        if hook_event(job) is None:  # a message from before only these were told of
            raise Undeliverable("the job was made by no hook")
        if host is None or host.forge is None or host.status_token is None:
            raise Undeliverable(f"git_hosts has no status_token for {message.endpoint} any more")
        token = self._secret(host.status_token)
        if token is None:
            raise NotYet(f"the secret {host.status_token} has no value: set it for the worker")
        return self._request(job, parse_remote(job.spec.git.url), host, token)

    def _request(self, job: Job, remote: Remote, host: GitHost, token: str) -> Request:
        assert host.forge is not None
        assert job.spec.git is not None
        assert job.spec.git.commit is not None
        forge = Forge(host.forge)
        page = page_of(job, self._public)
        call = status_call(forge, remote.full_name, job.spec.git.commit, job, page)
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": f"ciworker/{__version__}",
            **token_header(forge, token),
        }
        api = host.api or api_of(forge, remote.place)
        return Request(f"{api}{call.path}", headers, orjson.dumps(call.body), NEVER, host.ca_file)
