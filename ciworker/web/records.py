"""A log's lines on the wire: records as JSON, text as bytes. One encoding for all who watch."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain

import orjson

from ciworker.domain.log import Chunk, Line, Run, Stream, Unfinished
from ciworker.web.models import rfc3339


@lru_cache(maxsize=256)
def instant(at: int) -> str:
    """RFC 3339 of milliseconds since the epoch."""
    return rfc3339(datetime.fromtimestamp(at / 1000, UTC))


def record(line: Line) -> bytes:
    """One line record; what is no UTF-8 is U+FFFD here."""
    fields: dict[str, object] = {
        "n": line.number,
        "at": instant(line.at),
        "stream": line.stream.label,
        "text": line.text.decode(errors="replace"),
    }
    if not line.ended:
        fields["end"] = False
    return orjson.dumps(fields)


def partial_record(stream: Stream, text: Unfinished | None) -> bytes:
    """A line record without a number, of what is no line yet; None: there is no such text."""
    if text is None:
        return orjson.dumps({"stream": stream.label, "text": ""})
    return orjson.dumps({"at": instant(text.at), "stream": stream.label, "text": text.text})


def data_lines(chunk: Chunk) -> bytes:
    """A `data:` line for each record. Encoded run by run: a fifth of `record`'s time for each."""
    number, start, parts = chunk.first, 0, []
    for run in chunk.runs:
        texts = _escaped(chunk.data[start : start + run.size - run.ended])
        parts.append(_data_lines(run, number, texts))
        number, start = number + run.lines, start + run.size
    return b"".join(parts)


def _escaped(text: bytes) -> Sequence[bytes]:
    """Each line as JSON has it within its quotes; what is no UTF-8 is U+FFFD.

    Within JSON's strings a newline is escaped, so that those of the indentation are found nowhere
    else.
    """
    texts = text.decode(errors="replace").split("\n")
    return orjson.dumps(texts, option=orjson.OPT_INDENT_2)[5:-3].split(b'",\n  "')


def _data_lines(run: Run, first: int, texts: Sequence[bytes]) -> bytes:
    end = b"" if run.ended else b',"end":false'
    form = b'data: {"n":%%d,"at":"%b","stream":"%b","text":"%%b"%b}\n' % (
        instant(run.at).encode(), run.stream.label.encode(), end,
    )  # fmt: skip
    numbered = zip(range(first, first + run.lines), texts, strict=True)
    return (form * run.lines) % tuple(chain.from_iterable(numbered))


def ndjson(chunk: Chunk, only: Stream | None) -> bytes:
    """Line records, each on a line of its own."""
    wanted = (line for line in chunk.lines() if only is None or line.stream is only)
    return b"".join(record(line) + b"\n" for line in wanted)


def text(chunk: Chunk, only: Stream | None) -> bytes:
    """The exact bytes, of one stream or of all in the order in which they were read."""
    if only is None:
        return chunk.data
    parts, start = [], 0
    for run in chunk.runs:
        if run.stream is only:
            parts.append(chunk.data[start : start + run.size])
        start += run.size
    return b"".join(parts)


class TimedText:
    """Text with the time before each line; a piece of a long line goes on the line before it."""

    def __init__(self) -> None:
        self._open: dict[Stream, bool] = {}

    def text(self, chunk: Chunk, only: Stream | None) -> bytes:
        return b"".join(
            self._line(line) for line in chunk.lines() if only is None or line.stream is only
        )

    def _line(self, line: Line) -> bytes:
        goes_on = self._open.get(line.stream, False)
        self._open[line.stream] = not line.ended
        prefix = b"" if goes_on else instant(line.at).encode() + b" "
        return prefix + line.text + (b"\n" if line.ended else b"")
