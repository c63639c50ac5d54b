"""An attached stream's frames, however the socket cuts them."""

import struct
from itertools import groupby

from aiodocker.stream import Message
from hypothesis import given
from hypothesis import strategies as st

from ciworker.engine.output import AttachParser

FRAMES = st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=30)))


class Queue:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[tuple[Message, int]] = []
        self.over: list[BaseException | None] = []

    def feed_data(self, data: Message, size: int = 0) -> None:
        self.messages.append((data, size))

    def feed_eof(self) -> None:
        self.over.append(None)

    def set_exception(self, exc: BaseException) -> None:
        self.over.append(exc)


def on_the_wire(frames: list[tuple[int, bytes]]) -> bytes:
    return b"".join(struct.pack(">BxxxL", stream, len(data)) + data for stream, data in frames)


@given(FRAMES, st.lists(st.integers(1, 40)))
def test_no_byte_is_lost_or_changes_its_stream_or_its_place(
    frames: list[tuple[int, bytes]], sizes: list[int]
) -> None:
    queue, data = Queue(), on_the_wire(frames)
    parser = AttachParser(queue)
    for size in [*sizes, len(data)]:
        assert parser.feed_data(data[:size]) == (False, b"")
        data = data[size:]
    assert all(size == len(message.data) for message, size in queue.messages)
    assert merged([(m.stream, m.data) for m, _ in queue.messages]) == merged(frames)


def merged(frames: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    full = [frame for frame in frames if frame[1]]
    return [
        (stream, b"".join(data for _, data in group))
        for stream, group in groupby(full, key=lambda frame: frame[0])
    ]


def test_frames_that_come_together_are_one_message() -> None:
    queue = Queue()
    AttachParser(queue).feed_data(on_the_wire([(1, b"a\n"), (1, b"b\n"), (2, b"c\n"), (1, b"d\n")]))
    assert [message for message, _ in queue.messages] == [(1, b"a\nb\n"), (2, b"c\n"), (1, b"d\n")]


def test_the_end_and_a_break_are_handed_on() -> None:
    queue, broken = Queue(), ConnectionError()
    parser = AttachParser(queue)
    parser.feed_eof()
    parser.set_exception(broken)
    assert queue.over == [None, broken]
