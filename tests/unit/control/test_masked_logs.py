"""What jobs print of their secrets is masked before it is stored or shown, in every life."""

import asyncio
import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ciworker.control.credentials import Grant
from ciworker.control.logkeeper import LogKeeper, LogLimits
from ciworker.domain.job import Job, Reason, Status
from ciworker.domain.log import FRAME, PIECE, Line, LogFrame, Skipper, Stream
from ciworker.domain.masking import Mask
from ciworker.domain.secrets import Secret
from ciworker.feed.feed import Topic
from ciworker.store.logs import Batch, LogEnd, LogWriter
from ciworker.store.session import Database
from tests.unit.control.conftest import NewLab
from tests.unit.control.lab import Lab, Life
from tests.unit.control.test_logpump_unfinished import JOB, MARK

SECRET = "s3cret-välue-1"
OTHER = "0123456789abcdef"
MASK = Mask([Secret(SECRET), Secret(OTHER)])
OUT = Stream.STDOUT
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)  # which would take minutes
LATER = JOB.__class__(**{f: getattr(JOB, f) for f in JOB.__slots__} | {"status": Status.RUNNING})

# --- at every position -----------------------------------------------------------------------


def keeper_of(
    end: LogEnd,
    job: Job | None = None,
    *,
    mask: Mask | None = MASK,
    withheld: str = "",
    left_out: Sequence[str] = (),
) -> LogKeeper:
    return LogKeeper(
        job or (JOB if end == LogEnd() else LATER),
        writer=LogWriter(cast(Database, None)),
        topic=Topic(),
        end=end,
        limits=LogLimits(2**30, 2**40),
        on_progress=lambda: None,
        grant=Grant(mask=mask, withheld=withheld, left_out=left_out),
    )


def taken(keeper: LogKeeper) -> list[Batch]:
    batches = list(iter(keeper.take, None))
    for batch in batches:
        keeper.stored(batch)
    return batches


def end_behind(batches: Sequence[Batch]) -> LogEnd:
    if not batches:
        return LogEnd()
    last = batches[-1]
    return LogEnd(last.chunk.last, last.total_bytes, last.attempt, last.cursor)


def lines_of(batches: Sequence[Batch]) -> list[Line]:
    return [line._replace(at=0) for batch in batches for line in batch.chunk.lines()]


def readable(line: Line) -> tuple[int, str, bool]:
    """Of bytes that are not UTF-8 the engine's log has only that they were there."""
    return line.number, line.text.decode(errors="replace"), line.ended


def engine_log(data: bytes) -> Iterator[LogFrame]:
    """As json-file has it: lines in frames, each on its own made UTF-8."""
    for line in data.splitlines(keepends=True):
        for start in range(0, len(line), FRAME):
            frame = line[start : start + FRAME]
            text = (
                b"".join(bytes([byte]) if byte < 128 else "\ufffd".encode() for byte in frame)
                if not _is_utf8(frame)
                else frame
            )
            yield LogFrame(OUT, 0, text)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


FORMS = [
    SECRET.encode(),
    OTHER.encode(),
    base64.b64encode(f"user:{OTHER}".encode()),
    b"".join(b"%%%02x" % byte for byte in OTHER.encode()),
]
near_an_edge = st.sampled_from([FRAME, 2 * FRAME, PIECE, PIECE + FRAME, 2 * PIECE, 3 * PIECE])


@st.composite
def outputs(draw: st.DrawFn) -> bytes:
    """Lines, some of several pieces, with secrets mostly where frames and pieces are cut."""
    lines = []
    for _ in range(draw(st.integers(1, 4))):
        line = bytearray(b"." * draw(st.sampled_from([5, 100, PIECE + 50, 2 * PIECE + FRAME])))
        for form in draw(st.lists(st.sampled_from(FORMS), max_size=4)):
            place = draw(near_an_edge) - draw(st.integers(0, len(form) + 1))
            line[place : place + len(form)] = form
        lines.append(bytes(line) + b"\n")
    return b"".join(lines)


@settings(max_examples=60, deadline=None, phases=NO_SHRINKING)
@given(outputs(), st.lists(st.integers(1, 90_000), min_size=1, max_size=6), st.integers(0, 99))
def test_killed_anywhere_the_log_is_masked_as_if_it_had_lived_on(
    output: bytes, sizes: Sequence[int], killed: int
) -> None:
    asyncio.run(_killed_anywhere(output, sizes, killed))


async def _killed_anywhere(output: bytes, sizes: Sequence[int], killed: int) -> None:
    first, batches = keeper_of(LogEnd()), list[Batch]()
    stream, turn = MARK + output, 0
    while stream:
        size = sizes[turn % len(sizes)]
        first.feed(OUT, stream[:size])
        batches += taken(first)
        stream, turn = stream[size:], turn + 1
    first.finish()
    batches += taken(first)
    whole = b"".join(line.text + b"\n" * line.ended for line in lines_of(batches))
    assert whole == MASK.masked(output)

    stored = batches[: killed % (len(batches) + 1)]
    second = keeper_of(end_behind(stored))
    skipper = Skipper(second.cursor)
    second.start_over()
    for frame in engine_log(MARK + output):
        if skipper.wants(frame):
            second.feed_frame(frame)
        else:
            second.pass_over(frame)
    second.finish()

    again = lines_of(stored) + lines_of(taken(second))
    assert [readable(line) for line in again] == [readable(line) for line in lines_of(batches)]


async def test_what_was_printed_counts_and_not_what_is_stored_of_it() -> None:
    """The engine has all of it: a flood of secrets must not make its log rotate."""
    keeper = keeper_of(LogEnd())
    keeper._limits = LogLimits(10_000, 2**40)
    flood = SECRET.encode() * 10 + b"\n"
    keeper.feed(OUT, MARK + flood * 70)

    assert keeper.over_limit
    assert keeper.backlog < 1000


async def test_after_a_restart_what_was_printed_before_counts_too() -> None:
    flood = SECRET.encode() * 10 + b"\n"
    first = keeper_of(LogEnd())
    first.feed(OUT, MARK + flood * 30)
    second = keeper_of(end_behind(taken(first)))
    second._limits = LogLimits(7_000, 2**40)
    skipper = Skipper(second.cursor)
    for frame in engine_log(MARK + flood * 50):
        if skipper.wants(frame):
            second.feed_frame(frame)
        else:
            second.pass_over(frame)

    assert second.over_limit


async def test_what_stands_before_the_mark_is_masked_too() -> None:
    keeper = keeper_of(LogEnd())
    keeper.feed(OUT, f"tar: {SECRET}: no\n".encode())

    assert keeper.preamble == b"tar: ***: no\n"


async def test_what_is_left_out_is_said_once_wherever_the_worker_is_killed() -> None:
    for job in (JOB, LATER):  # before and after it was committed that the job runs
        first = keeper_of(LogEnd(), job, left_out=["TOKEN had no value"])
        first.feed(OUT, MARK)
        said = taken(first)
        second = keeper_of(end_behind(said), LATER, left_out=["TOKEN had no value"])
        second.feed(OUT, MARK + b"one\n")

        assert [line.text for line in lines_of([*said, *taken(second)])] == [
            b"ciworker: TOKEN had no value: it is left out of the job's environment",
            b"one",
        ]


async def test_lines_that_cannot_be_masked_are_withheld_and_it_is_said_once() -> None:
    first = keeper_of(LogEnd())
    first.feed(OUT, MARK + b"before\n")
    keeper = keeper_of(end_behind(taken(first)), mask=None, withheld="withheld: it changed")

    keeper.feed(OUT, f"{SECRET}\n".encode())
    keeper.feed(OUT, f"{SECRET}\n{SECRET}".encode())
    assert keeper.tail(OUT, 100) == "" or not keeper.shows(OUT)
    keeper.finish()

    assert [line.text for line in lines_of(taken(keeper))] == [b"ciworker: withheld: it changed"]
    assert keeper.incomplete
    assert keeper.complete


# --- jobs ------------------------------------------------------------------------------------


def wherever(lab: Lab, *values: str) -> list[str]:
    """The files in the data folder that hold one of these."""
    return [
        f"{path.name}: {value}"
        for path in Path(lab.settings.data_dir).rglob("*")
        if path.is_file()
        for value in values
        if value.encode() in path.read_bytes()
    ]


async def test_a_job_has_its_secrets_and_its_log_has_not(lab: Lab) -> None:
    lab.environ.update(GITHUB_TOKEN=SECRET, OPENAI_API_KEY=OTHER)
    async with lab.life() as life:
        job = await life.submit(
            'echo "is $GITHUB_TOKEN"; printf "%s" "$GITHUB_TOKEN" | base64; '
            'test -z "$OPENAI_API_KEY" && echo no other; sh -c "exit ${#GITHUB_TOKEN}"',
            secrets=("GITHUB_TOKEN",),
        )
        ended = await life.ended(job)

        assert await life.text(job) == b"is ***\n***\nno other\n"
        assert ended.exit_code in (len(SECRET), len(SECRET.encode()))
        assert set(ended.granted) == {"GITHUB_TOKEN"}
        assert wherever(lab, SECRET, OTHER) == []


async def test_a_secret_goes_before_variables_of_the_same_name(new_lab: NewLab) -> None:
    lab = new_lab(job_env={"GITHUB_TOKEN": "operators"})
    lab.environ["GITHUB_TOKEN"] = SECRET
    async with lab.life() as life:
        env = {"GITHUB_TOKEN": "jobs"}
        job = await life.submit("echo $GITHUB_TOKEN", secrets=("GITHUB_TOKEN",), env=env)
        await life.ended(job)
        assert await life.text(job) == b"***\n"


async def test_a_name_without_a_value_is_left_out_and_the_log_says_so(lab: Lab) -> None:
    lab.environ["OPENAI_API_KEY"] = "short"
    async with lab.life() as life:
        names = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "REMOVED")
        job = await life.submit("set | grep -c API_KEY", secrets=names)
        await life.ended(job)

        assert (await life.text(job)).decode().splitlines() == [
            "ciworker: ANTHROPIC_API_KEY has no value on this worker: it is left out of the job's "
            "environment",
            "ciworker: OPENAI_API_KEY has no line of 6 characters, and shorter ones cannot be "
            "masked: it is left out of the job's environment",
            "ciworker: REMOVED is not for this job any more (secret_names): it is left out of the "
            "job's environment",
            "0",
        ]


async def test_what_is_unfinished_is_shown_masked(lab: Lab) -> None:
    lab.environ["GITHUB_TOKEN"] = SECRET
    async with lab.life() as life:
        job = await life.submit(
            'printf "Token %s? s3cret" "$GITHUB_TOKEN"; sleep 60', secrets=("GITHUB_TOKEN",)
        )
        topic = life.feed.topic(job)
        async with asyncio.timeout(20):
            while not (found := topic.unfinished(topic.last)):
                await topic.changed.wait(topic.changed.version, 20)
        assert [text.text for text in found.values()] == ["Token ***? "]
        del topic
        await life.cancel(job)
        await life.ended(job)


STEPS = """
echo "one $GITHUB_TOKEN"; printf "two %s" "$GITHUB_TOKEN"
until [ -e /flags/go ]; do sleep 0.02; done
echo " $GITHUB_TOKEN"; echo "three $GITHUB_TOKEN"
"""


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """What a job of `flagged` waits for."""
    (tmp_path / "flags").mkdir()
    return tmp_path / "flags" / "go"


@pytest.fixture
def flagged(new_lab: NewLab, flag: Path) -> Lab:
    return new_lab(job_mounts=(f"{flag.parent}:/flags:ro",))


async def began(life: Life) -> str:
    job = await life.submit(STEPS, secrets=("GITHUB_TOKEN",))
    await life.printed(job, b"one ***\n")
    return job


async def test_an_adopted_job_is_masked_as_before(flagged: Lab, flag: Path) -> None:
    lab = flagged
    lab.environ["GITHUB_TOKEN"] = SECRET
    async with lab.life(clean=False) as life:
        job = await began(life)
    async with lab.life() as life:
        await life.resync.run()
        flag.touch()
        ended = await life.ended(job)

        assert await life.text(job) == b"one ***\ntwo *** ***\nthree ***\n"
        assert (ended.reason, ended.log_incomplete) == (Reason.PASSED, False)
        assert wherever(lab, SECRET) == []


@pytest.mark.parametrize("now", ["another-value", ""])
async def test_a_value_that_changed_while_the_worker_was_away_withholds_the_rest(
    flagged: Lab, flag: Path, now: str
) -> None:
    lab = flagged
    lab.environ["GITHUB_TOKEN"] = SECRET
    async with lab.life(clean=False) as life:
        job = await began(life)
    lab.environ["GITHUB_TOKEN"] = now
    async with lab.life() as life:
        await life.resync.run()
        flag.touch()
        ended = await life.ended(job)

        first, told = (await life.text(job)).decode().splitlines()
        assert first == "one ***"
        assert told.startswith("ciworker: what the job prints from here on is withheld: ")
        assert "GITHUB_TOKEN is not what the job was given" in told
        assert (ended.reason, ended.log_incomplete) == (Reason.PASSED, True)
        assert wherever(lab, SECRET) == []


async def test_a_value_that_is_back_in_time_shows_all(flagged: Lab, flag: Path) -> None:
    lab = flagged
    lab.environ["GITHUB_TOKEN"] = SECRET
    async with lab.life(clean=False) as life:
        job = await began(life)
    lab.environ["GITHUB_TOKEN"] = ""
    async with lab.life(clean=False) as life:
        await life.resync.run()
    lab.environ["GITHUB_TOKEN"] = SECRET
    async with lab.life() as life:
        await life.resync.run()
        flag.touch()
        await life.ended(job)
        assert (await life.text(job)).endswith(b"two *** ***\nthree ***\n")


async def test_a_value_that_changes_meanwhile_is_the_next_jobs(
    new_lab: NewLab, tmp_path: Path, flag: Path
) -> None:
    file = tmp_path / "secrets.toml"
    file.touch(0o600)
    file.write_text(f'GITHUB_TOKEN = "{SECRET}"')
    mounts = (f"{flag.parent}:/flags:ro",)
    lab = new_lab(secrets_file=file, max_jobs=2, job_mounts=mounts)
    async with lab.life() as life:
        before = await began(life)
        file.write_text('GITHUB_TOKEN = "another-value"')
        after = await life.submit(
            f"echo $GITHUB_TOKEN {SECRET}; [ $GITHUB_TOKEN = another-value ]",
            secrets=("GITHUB_TOKEN",),
        )
        assert (await life.ended(after)).reason is Reason.PASSED
        flag.touch()
        await life.ended(before)

        assert await life.text(before) == b"one ***\ntwo *** ***\nthree ***\n"
        assert await life.text(after) == f"*** {SECRET}\n".encode()


async def test_a_parked_container_takes_a_job_with_secrets(new_lab: NewLab) -> None:
    entry = {"name": "tea", "image": "fake", "size": 1, "memory": 2**28, "cpus": 1.0}
    lab = new_lab(pool=(entry,))
    lab.environ["GITHUB_TOKEN"] = SECRET
    async with lab.life(clean=False) as life:
        await life.resync.run()
        assert len(life.up()) == 1
        job = await life.submit("echo $GITHUB_TOKEN", secrets=("GITHUB_TOKEN",))
        ended = await life.ended(job)

        assert await life.text(job) == b"***\n"
        assert set(ended.granted) == {"GITHUB_TOKEN"}
        assert life.metrics.control.pool_taken.labels("tea")._value.get() == 1


async def test_a_data_folder_that_takes_no_key_lets_the_job_wait(lab: Lab) -> None:
    lab.environ["GITHUB_TOKEN"] = SECRET
    lab.settings.secrets_key.mkdir()
    async with lab.life() as life:
        job = await life.submit("echo $GITHUB_TOKEN", secrets=("GITHUB_TOKEN",))
        async with asyncio.timeout(20):
            while not life.controller._failures:
                await asyncio.sleep(0.01)
        lab.settings.secrets_key.rmdir()

        assert (await life.ended(job)).reason is Reason.PASSED
        assert await life.text(job) == b"***\n"


async def test_with_a_pool_a_job_whose_secrets_cannot_be_given_waits_alone(new_lab: NewLab) -> None:
    entry = {"name": "tea", "image": "fake", "size": 1, "memory": 2**28, "cpus": 1.0}
    lab = new_lab(pool=(entry,), max_jobs=2)
    lab.environ["GITHUB_TOKEN"] = SECRET
    lab.settings.secrets_key.write_bytes(b"cut")
    async with lab.life(clean=False) as life:
        await life.resync.run()
        waiting = await life.submit("echo $GITHUB_TOKEN", secrets=("GITHUB_TOKEN",))
        behind = await life.submit("echo two")
        assert (await life.ended(behind)).reason is Reason.PASSED
        found = await life.jobs.get(waiting)
        assert found is not None
        assert found.status is Status.STARTING
        lab.settings.secrets_key.unlink()

        assert (await life.ended(waiting)).reason is Reason.PASSED
        assert await life.text(waiting) == b"***\n"


async def test_a_setup_has_its_secrets_and_its_environment_depends_on_their_names_alone(
    new_lab: NewLab,
) -> None:
    lab = new_lab(secret_names=({"name": "INDEX", "setup": True}, "JOBS"))
    lab.environ.update(INDEX=SECRET, JOBS=OTHER)
    wanted = {"setup": ('echo "$INDEX,$JOBS"',), "setup_secrets": ("INDEX",)}
    async with lab.life() as life:
        first = await life.submit('echo "job $INDEX,"', **wanted)
        await life.ended(first)
        lab.environ["INDEX"] = "another-value"
        second = await life.submit("true", **wanted)
        third = await life.submit("true", setup=wanted["setup"])
        jobs = [await life.ended(job) for job in (first, second, third)]

        assert b"\n***,\n" in await life.text(first)
        assert b"job ,\n" in await life.text(first)
        assert jobs[0].environment == jobs[1].environment != jobs[2].environment
        assert wherever(lab, SECRET, OTHER) == []
