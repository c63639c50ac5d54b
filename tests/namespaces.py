"""Network namespaces: machines of their own, as far as addresses and packet filters go."""

import asyncio
import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """One that has a name; see ip-netns(8)."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def path(self) -> str:
        return f"/var/run/netns/{self.name}"

    @property
    def within(self) -> list[str]:
        """Words before a command that is to run inside."""
        return ["nsenter", f"--net={self.path}"]

    def run(self, *words: str) -> str:
        """What a command inside prints; it has to succeed."""
        ran = subprocess.run([*self.within, *words], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, (words, ran.stderr)
        return ran.stdout

    def filter(self) -> str:
        """All rules of both families."""
        return self.run("iptables", "-S") + self.run("ip6tables", "-S")

    def socket(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """An IPv4 socket that belongs to it, wherever it is used."""
        own, theirs = (os.open(path, os.O_RDONLY) for path in ("/proc/self/ns/net", self.path))
        try:
            _enter(theirs)
            return socket.socket(socket.AF_INET, kind)
        finally:
            _enter(own)
            os.close(own)
            os.close(theirs)

    @asynccontextmanager
    async def serving(self, address: str, port: int = 0) -> AsyncIterator[int]:
        """The port of a socket inside that takes connections, and ends them."""

        async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        listener = self.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        async with await asyncio.start_server(hang_up, sock=listener):
            yield listener.getsockname()[1]


def _enter(descriptor: int) -> None:
    """This thread alone."""
    if _LIBC.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def namespace() -> Iterator[Namespace]:
    """An empty one."""
    made = Namespace(f"ciw-{os.urandom(5).hex()}")
    subprocess.run(["ip", "netns", "add", made.name], check=True)
    try:
        made.run("ip", "link", "set", "lo", "up")
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", made.name], check=True)
