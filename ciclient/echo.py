"""What is typed while rows are shown that go away again: it is not echoed, as it would move the
cursor, and with it what is erased.

The terminal is the process's, and so is what is to be restored: whoever leaves the process has to.
"""

import os
import termios

_LOCAL_FLAGS = 3  # where tcgetattr has them
_silenced: set[int] = set()


def silence(handle: int) -> None:
    """On a terminal whose foreground we are: another's would stop us, or is not ours to change."""
    if _is_ours(handle) and _flags(handle) & termios.ECHO:
        _silenced.add(handle)
        _set_flags(handle, _flags(handle) & ~termios.ECHO)


def restore() -> None:
    """All that was silenced; may be called by a signal's handler."""
    while _silenced:
        handle = _silenced.pop()
        if _is_ours(handle):
            _set_flags(handle, _flags(handle) | termios.ECHO)


def _is_ours(handle: int) -> bool:
    try:
        return os.tcgetpgrp(handle) == os.getpgrp()
    except OSError:
        return False


def _flags(handle: int) -> int:
    return int(termios.tcgetattr(handle)[_LOCAL_FLAGS])


def _set_flags(handle: int, flags: int) -> None:
    attributes = termios.tcgetattr(handle)
    attributes[_LOCAL_FLAGS] = flags
    # at once: to wait for output would block where the terminal is stuck
    termios.tcsetattr(handle, termios.TCSANOW, attributes)
