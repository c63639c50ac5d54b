"""The event stream over real sockets: cut, repeated, holed, silent."""

import threading
import time
from collections.abc import Iterator

import pytest

from ciclient.api import Api, Params
from ciclient.config import Access
from ciclient.errors import Nonsense, Refused, Unavailable, Unreachable
from ciclient.follow import (
    Changed,
    Ended,
    Event,
    JobStream,
    Lines,
    Missing,
    Partial,
    Reconnected,
    Reconnecting,
)
from ciclient.wire import Unfinished
from tests.unit.client.fakeworker import FakeWorker

FIRST: Params = {"from": 1}


@pytest.fixture
def api(access: Access) -> Iterator[Api]:
    with Api(access, silence=0.3) as api:
        yield api


def events(api: Api, job_id: str, start: Params = FIRST, established: bool = False) -> list[Event]:
    def no_pause(_: float) -> None:
        pass

    stream = JobStream(api, api.job(job_id), start, established=established, sleep=no_pause)
    return list(stream.events())


def texts(found: list[Event]) -> list[str]:
    return [record.text for event in found if isinstance(event, Lines) for record in event.records]


def numbered(count: int) -> list[str]:
    return [f"line {number}" for number in range(1, count + 1)]


def test_a_job_that_has_ended_is_read_to_its_end(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_ended(lines=["a\u2028b", "c"])
    found = events(api, job_id)
    assert texts(found) == ["a\u2028b", "c"]
    assert isinstance(found[0], Changed)
    assert isinstance(found[-1], Ended)
    assert found[-1].job.success is True


def test_lines_come_while_the_job_runs(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_job(status="running", lines=["first"])
    stream = JobStream(api, api.job(job_id), FIRST).events()
    assert isinstance(next(stream), Changed)
    assert texts([next(stream)]) == ["first"]
    worker.print(job_id, "second")
    assert texts([next(stream)]) == ["second"]
    worker.end(job_id, "tests_failed")
    rest = list(stream)
    assert isinstance(rest[-1], Ended)
    assert rest[-1].job.reason == "tests_failed"


def test_a_stream_cut_at_every_line_goes_on_without_gap_or_repeat(
    worker: FakeWorker, api: Api
) -> None:
    job_id = worker.add_ended(lines=numbered(40))
    worker.cuts = [1, 0, 3, 2, 1, 7, 0, 0, 5]
    worker.overlap = 2
    found = events(api, job_id)
    assert texts(found) == numbered(40)
    assert sum(isinstance(event, Reconnecting) for event in found) == 9
    assert sum(isinstance(event, Reconnected) for event in found) == 9


def test_a_resumed_stream_names_the_last_line_it_has(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_ended(lines=numbered(9))
    worker.cuts = [4]
    events(api, job_id)
    first, second = worker.asked("GET", "/events")
    assert (first.query, first.headers.get("Last-Event-ID")) == ({"from": "1"}, None)
    assert (second.query, second.headers["Last-Event-ID"]) == ({}, "4")


def test_a_line_that_was_left_out_is_asked_for_again(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_ended(lines=numbered(9))
    worker.skips = [5]
    found = events(api, job_id)
    assert texts(found) == numbered(9)
    assert not any(isinstance(event, Missing) for event in found)


def test_lines_that_do_not_exist_are_told_as_missing(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_ended(lines=numbered(9))
    worker.never_stored = {4, 5}
    found = events(api, job_id)
    assert texts(found) == [line for line in numbered(9) if line not in {"line 4", "line 5"}]
    assert [event for event in found if isinstance(event, Missing)] == [Missing(4, 5)]


def test_a_silent_connection_is_given_up_and_made_anew(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_ended(lines=["a"])
    worker.gone_quiet = 1
    before = time.monotonic()
    found = events(api, job_id)
    assert texts(found) == ["a"]
    assert time.monotonic() - before >= 0.3
    assert any(isinstance(e, Reconnecting) and "for 0.3 s" in e.reason for e in found)


def test_a_tail_begins_late_and_still_has_no_gap(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_ended(lines=numbered(9))
    worker.cuts = [2]
    assert texts(events(api, job_id, {"tail": 4})) == numbered(9)[5:]


def test_new_lines_only_means_new_since_it_was_asked(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_job(status="running", lines=numbered(3))
    worker.cuts = [0]
    stream = JobStream(api, api.job(job_id), {"now": 1}, sleep=lambda _: None).events()
    while not isinstance(next(stream), Reconnecting):
        pass
    worker.print(job_id, "while it was away")
    worker.end(job_id)
    assert texts(list(stream)) == ["while it was away"]


def test_a_server_that_is_busy_at_a_reconnect_is_asked_again(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_ended(lines=numbered(4))
    worker.cuts = [2]
    path = f"/api/v1/jobs/{job_id}/events"
    stream = JobStream(api, api.job(job_id), FIRST, sleep=lambda _: None).events()
    assert isinstance(next(stream), Changed)
    worker.refusals[path] = [(503, "the store is locked", {"Retry-After": "7"})]
    found = list(stream)
    assert texts(found) == numbered(4)
    pauses = [event.pause for event in found if isinstance(event, Reconnecting)]
    assert len(pauses) == 2
    assert pauses[1] == 7


def test_a_token_revoked_in_between_is_final(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_ended(lines=numbered(4))
    worker.cuts = [2]
    stream = JobStream(api, api.job(job_id), FIRST, sleep=lambda _: None).events()
    next(stream)
    worker.refusals[f"/api/v1/jobs/{job_id}/events"] = [(401, "the token was revoked", {})]
    with pytest.raises(Refused, match="revoked"):
        list(stream)


def test_the_first_connection_is_not_tried_again(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_ended(lines=["a"])
    worker.refusals[f"/api/v1/jobs/{job_id}/events"] = [(503, "not now", {})]
    with pytest.raises(Unavailable, match="not now"):
        events(api, job_id)


def test_right_after_a_submit_it_is(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_ended(lines=["a"])
    worker.refusals[f"/api/v1/jobs/{job_id}/events"] = [(503, "not now", {})]
    assert texts(events(api, job_id, established=True)) == ["a"]


def test_a_server_that_refuses_connections_is_unreachable() -> None:
    with Api(Access("http://127.0.0.1:1", "the test")) as api:
        with pytest.raises(Unreachable) as caught:
            api.job("X")
        assert caught.value.cause == "refused"
        assert "refused" in str(caught.value)


def test_what_is_unfinished_comes_as_it_changes(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_job(status="running")
    stream = JobStream(api, api.job(job_id), FIRST).events()
    assert isinstance(next(stream), Changed)
    for text in ("..", "...", ""):
        worker.print_without_newline(job_id, text, "stderr")
        assert next(stream) == Partial(Unfinished("stderr", text))


def test_an_unfinished_line_without_text_is_no_ciworker_s(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_ended()
    worker.raw_stream = b'event: partial\ndata: {"stream": "stdout"}\n\n'
    with pytest.raises(Nonsense, match="unfinished line"):
        events(api, job_id)


def test_an_unknown_event_is_passed_over(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_ended()
    end = f'event: end\ndata: {{"id": "{job_id}", "status": "completed"}}\nid: end\n\n'
    worker.raw_stream = b"event: test\ndata: {}\n\n" + end.encode()
    found = events(api, job_id)
    assert [type(event) for event in found] == [Ended]


def test_a_stream_that_is_no_ciworker_s_is_an_error(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_ended()
    worker.raw_stream = b"event: log\ndata: <html>\n\n"
    with pytest.raises(Nonsense):
        events(api, job_id)


def test_pauses_double_up_to_a_bound_and_begin_anew_after_an_event(
    worker: FakeWorker, api: Api
) -> None:
    job_id = worker.add_ended(lines=["a", "b"])
    path = f"/api/v1/jobs/{job_id}/events"
    worker.refusals[path] = [(502, "proxy", {}) for _ in range(8)]
    pauses: list[float] = []
    stream = JobStream(
        api, api.job(job_id), FIRST, established=True, sleep=pauses.append, jitter=lambda: 0.5
    )
    worker.cuts = [1]
    assert texts(list(stream.events())) == ["a", "b"]
    assert pauses == [1, 2, 4, 8, 15, 15, 15, 15, 0.01]


def test_a_flood_arrives_complete_and_in_order(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_job(status="running")

    def flood() -> None:
        for first in range(0, 50_000, 1000):
            worker.print(job_id, *(str(n) for n in range(first, first + 1000)))
        worker.end(job_id)

    thread = threading.Thread(target=flood)
    thread.start()
    worker.cuts = [10_000, 7]
    assert texts(events(api, job_id)) == [str(n) for n in range(50_000)]
    thread.join()


def test_a_204_means_the_job_has_ended(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_ended(lines=["a"])
    worker.refusals[f"/api/v1/jobs/{job_id}/events"] = [(204, "", {})]
    assert [type(event) for event in events(api, job_id)] == [Ended]


def test_a_204_for_a_job_that_runs_is_a_lost_stream(worker: FakeWorker, api: Api) -> None:
    job_id = worker.add_job(status="running", lines=["a"])
    worker.refusals[f"/api/v1/jobs/{job_id}/events"] = [(204, "", {})]
    stream = JobStream(api, api.job(job_id), FIRST, sleep=lambda _: None).events()
    assert isinstance(next(stream), Reconnecting)
    worker.end(job_id)
    assert texts(list(stream)) == ["a"]
