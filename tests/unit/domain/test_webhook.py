"""What others are told, how that is signed, and how long it is tried."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciworker.domain.job import Reason, Status
from ciworker.domain.webhook import (
    BACKOFF_FIRST,
    BACKOFF_MOST,
    ENDS,
    EVENTS,
    Subscriber,
    backoff,
    messages,
    signature,
)
from ciworker.settings import WebhookEntry, WebhookEvent
from ciworker.units import key_of
from tests.store.lab import NOW, SECOND, new_job


def test_a_signature_is_that_of_the_scheme_s_own_example() -> None:
    key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_!", "whsec_c2hvcnQ=", "c2hvcnQ=" * 5])
def test_what_is_no_key_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="has to be whsec_ and the base64") as refused:
        key_of(text)
    assert not text or text == "whsec_" or text not in str(refused.value)


def test_events_are_named_by_the_statuses_and_the_ends_are_told_if_nothing_is_said() -> None:
    assert get_args(WebhookEvent) == EVENTS
    entry = WebhookEntry.model_validate({"url": "https://example.org", "secret": "NAME"})
    assert sorted(entry.events) == sorted(ENDS)


@pytest.mark.parametrize("status", Status)
def test_each_is_told_what_it_wants_and_nothing_else(status: Status) -> None:
    subscribers = [Subscriber("all", EVENTS), Subscriber("ends", ENDS), Subscriber("none", ())]
    told = messages(new_job(status=status), NOW, subscribers, None)
    wanted = ["all", "ends"] if status.terminal else ["all"]
    assert [message.endpoint for message in told] == wanted
    assert {message.type for message in told} == {f"job.{status}"}


def test_a_message_says_what_became_of_the_job_and_where_to_look() -> None:
    job = replace(
        new_job(1), status=Status.COMPLETED, reason=Reason.TESTS_FAILED, message="exit code 1",
        exit_code=1, attempt=1, started_at=NOW, finished_at=NOW + SECOND,
    )  # fmt: skip
    (message,) = messages(job, NOW, [Subscriber("x", ENDS)], "https://ci.example.org")
    told = json.loads(message.body)
    assert (told["type"], told["timestamp"]) == ("job.completed", "2026-01-02T03:04:05.678Z")
    assert told["data"] == {
        "id": job.id, "project": "tea", "status": "completed", "success": False,
        "reason": "tests_failed", "message": "exit code 1", "exit_code": 1, "attempt": 1,
        "retry_of": None, "image": "python:3.12-slim", "source": {},
        "created_at": "2026-01-02T03:04:05.678Z", "started_at": "2026-01-02T03:04:05.678Z",
        "finished_at": "2026-01-02T03:04:06.678Z",
        "url": f"https://ci.example.org/jobs/{job.id}",
    }  # fmt: skip


@given(failures=st.integers(1, 10_000), jitter=st.floats(0, 1))
def test_pauses_grow_up_to_a_bound(failures: int, jitter: float) -> None:
    pause = backoff(failures, jitter)
    assert timedelta(seconds=1.5) <= pause <= 1.25 * BACKOFF_MOST
    assert backoff(failures + 1, 0.5) >= backoff(failures, 0.5)
    assert backoff(1, 0.5) == BACKOFF_FIRST
