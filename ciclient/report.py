"""What is said about jobs, as plain text: verdict, list, description. Pure: values in, text out.

Everything that a job or the server named is cleaned here.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from ciclient.sanitise import clean, clean_line
from ciclient.wire import Job

HEADINGS = ("ID", "STATUS", "PROJECT", "IMAGE", "CREATED", "TOOK")
_MAY_BE_CUT = (HEADINGS.index("IMAGE"), HEADINGS.index("PROJECT"))
_LEAST_WIDTH = 8
_LEAST_HEADINGS = HEADINGS.index("STATUS") + 1
FAILURES = (1, 3)  # exit codes of jobs that ended by themselves and did not pass
_APART = ("history", "last_lines", "phases")  # of a job's fields, are told in another way
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def exit_code(job: Job) -> int:
    """Of an ended job: 0 passed, 1 completed without success, 3 no verdict, 4 cancelled."""
    if job.status == "completed":
        return 0 if job.success is True else 1
    return 4 if job.status == "cancelled" else 3


def outcome(job: Job) -> str:
    """One word or two: the status, with what it means once the job has ended."""
    if job.status == "completed":
        return "passed" if job.success is True else "not passed"
    return "no verdict" if job.status == "failed" else clean(job.status)


def phase(job: Job) -> str:
    """What a job is at, in one word or two; once it has ended, its outcome."""
    return "setup" if job.status == "starting" or job.waits_for else outcome(job)


def phases(job: Job, now: datetime | None = None) -> str:
    """What a job's time went into: `queued 3.0 s, setup 0.4 s, run 12 s`. Empty where the server
    did not tell."""
    return ", ".join(f"{clean(name)} {duration(seconds)}" for name, seconds in job.phases(now))


def verdict(job: Job, now: datetime) -> str:
    """One line: id, outcome, cause, exit code, how long, and the sentence that explains it."""
    return f"{clean(job.id)} {ending(job, now)}"


def ending(job: Job, now: datetime) -> str:
    """The verdict without the id."""
    facts = [clean(job.reason)] if job.reason and job.reason not in {"passed", job.status} else []
    code = f"exit code {job.exit_code}"
    words = job.exit_words or code
    if job.exit_code and (words == code or not (job.message or "").startswith(words)):
        facts.append(clean(words))
    seconds = job.seconds(now)
    if seconds is not None:
        facts.append(duration(seconds))
    bracket = f" ({', '.join(facts)})" if facts else ""
    said = {job.reason, *facts}
    message = f": {clean(job.message)}" if job.message and job.message not in said else ""
    return f"{outcome(job)}{bracket}{message}"


def page_url(job: Job, server: str) -> str:
    """Its page; a worker behind a Unix socket knows alone where that is seen."""
    if server.startswith("unix:"):
        return f"ciclient open {clean(job.id)}"
    return f"{server}/jobs/{clean(job.id)}"


def next_steps(job: Job, server: str) -> list[str]:
    """Where an ended job's time went, if that is known, and what can be done with it now."""
    job_id, spent = clean(job.id), phases(job)
    return [
        *([f"phases:     {spent}"] if spent else []),
        f"page:       {page_url(job, server)}",
        f"its log:    ciclient logs {job_id}",
        f"once more:  ciclient retry {job_id}",
    ]


def last_lines(job: Job) -> list[str]:
    """The end of the log of a job that did not pass, below a heading; empty where the server did
    not tell."""
    records = job.last_lines()
    if not records:
        return []
    total = max(job.log_lines or 0, records[-1].n)
    heading = f"last {plural(len(records), 'line')} of {total:,}:"
    return [heading, *(clean_line(record.text, colour=False) for record in records)]


def come_back(job_id: str) -> str:
    return (
        f"come back:  ciclient follow {clean(job_id)}\ncancel it:  ciclient cancel {clean(job_id)}"
    )


def why_empty(job: Job, stream: str | None) -> str:
    """What is said instead of a log without a line; `stream` is the one that was asked for."""
    where = f" on {stream}" if stream else ""
    if job.ended:
        return f"{clean(job.id)} ended without any output{where}"
    return f"{clean(job.id)} has no output{where} yet; it is {clean(job.status)}"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 5 s`, `2 h 4 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"


def clock(seconds: float) -> str:
    """`0:07`, `12:30`, `1:02:03`: of constant width from one second to the next."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def age(moment: datetime | None, now: datetime) -> str:
    if moment is None:
        return "-"
    seconds = max(0, int((now - moment).total_seconds()))
    for unit, letter in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "m")):
        if seconds >= unit:
            return f"{seconds // unit}{letter} ago"
    return f"{seconds}s ago"


def size(count: int) -> str:
    """Binary units, as the settings count them: `512 B`, `1.5 kB`, `48.0 MB`."""
    if count < 1024:
        return f"{count} B"
    amount = count / 1024
    for unit in ("kB", "MB"):
        if amount < 1024:
            return f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GB"


def plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count:,} {word}s"


def row(job: Job, now: datetime) -> tuple[str, ...]:
    """A job's cells under HEADINGS."""
    seconds = job.seconds(now)
    return (
        clean(job.id),
        outcome(job),
        clean(job.project or "-"),
        clean(job.image or "-"),
        age(job.created_at, now),
        "-" if seconds is None else duration(seconds),
    )


def aligned(rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """One line per row under HEADINGS. Where `width`, in a terminal's columns, is too small,
    project and image are cut, then the last headings are left out."""
    from ciclient.cells import padded

    widths = _widths(rows, width)
    return ["  ".join(map(padded, cells, widths)).rstrip() for cells in rows]


def _widths(rows: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """Of the headings that are shown."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    if width is None:
        return widths
    least = list(widths)
    for index in _MAY_BE_CUT:
        least[index] = min(widths[index], _LEAST_WIDTH)
    while len(least) > _LEAST_HEADINGS and _taken(least) > width:
        least.pop()
    del widths[len(least) :]
    for index in _MAY_BE_CUT:
        if index < len(widths):
            excess = max(_taken(widths) - width, 0)
            widths[index] = max(least[index], widths[index] - excess)
    return widths


def _taken(widths: Sequence[int]) -> int:
    return sum(widths) + len("  ") * (len(widths) - 1)


def describe(job: Job, now: datetime) -> str:
    """Everything known about a job, the verdict or status last."""
    facts = {key: value for key, value in job.raw.items() if key not in _APART}
    lines = list(_fields(facts, ""))
    if spent := phases(job, now):
        lines.append(f"{'phases':<16} {spent}")
    history = job.raw.get("history")
    if isinstance(history, list) and history:
        lines.append("history")
        lines += [f"  {_event(event)}" for event in history if isinstance(event, dict)]
    return "\n".join([*lines, *last_lines(job), "", verdict(job, now)])


def resync(result: Mapping[str, object]) -> str:
    """A line per bucket that names anything, then how many were unchanged and repaired."""
    lines = []
    for bucket, names in result.items():
        if isinstance(names, list) and names and bucket not in {"unchanged", "repairs"}:
            lines.append(f"[resync] {clean(bucket)}: {', '.join(clean(str(n)) for n in names)}")
    unchanged, repairs = _count(result.get("unchanged")), _count(result.get("repairs"))
    return "\n".join([*lines, f"[resync] unchanged: {unchanged}, repairs: {repairs}"])


def _count(value: object) -> int:
    if isinstance(value, list):
        return len(value)
    return value if isinstance(value, int) else 0


def _fields(facts: Mapping[str, object], indent: str) -> Iterable[str]:
    for key, value in facts.items():
        if value is None or value in ([], {}):
            continue
        name = f"{indent}{clean(str(key))}"
        if isinstance(value, dict):
            yield name
            yield from _fields(value, indent + "  ")
        else:
            yield f"{name:<16} {_value(value)}"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(_value(item) for item in value)
    return clean(str(value))


def _event(event: Mapping[str, object]) -> str:
    change = f"{event.get('from') or '-'} -> {event.get('to') or '-'}"
    parts = [event.get("at"), change, event.get("reason"), event.get("message")]
    return clean("  ".join(str(part) for part in parts if part))
