"""What can go wrong, by what the caller does next: an exit code, and `TryAgain` or not.

Every edge (network, git, files) translates into these once; `ciclient.cli.run` prints them once.
"""


class ClientError(Exception):
    """Base of all; its text is a sentence for the person at the terminal."""

    exit_code = 5


class Usage(ClientError):
    """The command line, the folder or the job named on it is wrong; no retry will help."""

    exit_code = 2


class Refused(ClientError):
    """The server answered, and its answer is no."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Nonsense(ClientError):
    """Something answered, but not as a ciworker would."""


class TryAgain(ClientError):
    """The same request may succeed later; `retry_after` is the server's wish in seconds."""

    retry_after: float | None = None


class Unreachable(TryAgain):
    """Nobody answered. `cause` is one of dns, refused, timeout, scheme, tls, lost.

    `sentence` says what is wrong; `mend`, which is None where it hangs on more, what to do.
    """

    def __init__(self, cause: str, sentence: str, mend: str | None = None) -> None:
        super().__init__(sentence if mend is None else f"{sentence}: {mend}")
        self.cause = cause
        self.sentence = sentence
        self.mend = mend


class Unavailable(TryAgain):
    """The server answered that it can't just now (429 or 5xx)."""

    def __init__(self, status: int, detail: str, retry_after: float | None) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after = retry_after


class WaitTimeout(ClientError):
    """`wait --timeout` ran out; the job goes on."""

    exit_code = 124


class Detached(ClientError):
    """Ctrl-C left the job running."""

    exit_code = 130


class OutputFailed(ClientError):
    """What should be shown can't be written, as on a full disk."""


class OutputClosed(OutputFailed):
    """Whoever read our stdout has gone, as `head` does; 141 is what SIGPIPE would have made."""

    exit_code = 141
