"""The start mark: the proof, in the engine's own log, that a job began.

It is the first line a container writes, an escape sequence that carries a token only the worker
and the container know; it ends in a newline because json-file writes nothing before one comes.
Any other line that looks like it is text of the job.
"""


def start_mark(token: str, job_id: str, attempt: int) -> bytes:
    """The mark's line, without its newline."""
    return f"\x1b]ciworker;{token};{job_id};{attempt}\x1b\\".encode()
