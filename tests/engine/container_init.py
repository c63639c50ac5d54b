"""The first process of a fake container: builds its root, then is its init.

Run by `fake.py` as PID 1 of new namespaces: `container_init.py CONFIG COMMAND...`.
Its first line on stdout says `ready PID` (its PID outside) or `refused REASON`; all that follows
is the command's own. Like docker's init it passes signals on to its one child, reaps whatever
is orphaned to it, and ends with the child's exit code; with it every process inside ends.

Imports nothing of the project: it runs with `-I -S`, before a chroot.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC = 1, 32, 4096, 16384
PR_SET_NO_NEW_PRIVS = 38
HOST_FOLDERS = ("usr", "etc", "bin", "sbin", "lib", "lib64")
DEVICES = ("null", "zero", "full", "random", "urandom")
FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    arguments = (source.encode(), bytes(target), kind.encode(), flags, options.encode())
    if _libc.mount(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, f"mounting {source} to {target}: {os.strerror(code)}")


def build_root(root: Path, config: dict[str, Any]) -> None:
    """A root of its own, all of it in memory but the host's programs."""
    own = f"uid={config['uid']},gid={config['uid']}"
    mount("tmpfs", root, "tmpfs", options="mode=0755,size=1m")
    for name in HOST_FOLDERS:
        bind_host_folder(Path("/", name), root / name)
    make_devices(root / "dev")
    for name, options in (
        ("workspace", f"mode=0700,{own},size={config['workspace_size']}"),
        ("tmp", f"mode=1777,size={config['workspace_size']}"),
        *((volume.lstrip("/"), f"mode=0700,{own}") for volume in config["volumes"]),
    ):
        (root / name).mkdir(parents=True, exist_ok=True)
        mount("tmpfs", root / name, "tmpfs", options=options)
    (root / "proc").mkdir()
    mount("proc", root / "proc", "proc")
    for entry in config["mounts"]:
        bind(root, *entry.split(":"))


def bind_host_folder(source: Path, target: Path) -> None:
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif source.is_dir():
        target.mkdir()
        mount(str(source), target, flags=MS_BIND | MS_REC)


def make_devices(folder: Path) -> None:
    folder.mkdir()
    for name in DEVICES:
        (folder / name).touch()
        mount(f"/dev/{name}", folder / name, flags=MS_BIND)
    (folder / "fd").symlink_to("/proc/self/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (folder / name).symlink_to(f"/proc/self/fd/{number}")


def bind(root: Path, source: str, target: str, mode: str = "rw") -> None:
    inside = root / target.lstrip("/")
    if not inside.exists():
        inside.mkdir(parents=True)
    mount(source, inside, flags=MS_BIND | MS_REC)
    if mode == "ro":
        mount(source, inside, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def become_command(command: list[str], config: dict[str, Any]) -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.setpgid(0, 0)
    if os.getuid() != config["uid"]:
        os.setgroups([])
        os.setgid(config["uid"])
        os.setuid(config["uid"])
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    try:
        os.execvpe(command[0], command, config["environment"])
    except OSError as error:
        os.write(2, f"[FATAL init] exec {command[0]} failed: {error.strerror}\n".encode())
        os._exit(126 if isinstance(error, PermissionError) else 127)


def run(command: list[str], config: dict[str, Any], outside: str) -> int:
    """Says `ready`, runs the command, gives its exit code."""
    awaited = (signal.SIGCHLD, *FORWARDED)
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    os.write(1, f"ready {outside}\n".encode())
    child = os.fork()
    if not child:
        become_command(command, config)
    while True:
        number = signal.sigwait(awaited)
        if number != signal.SIGCHLD:
            os.kill(child, number)
        elif (code := reap(child)) is not None:
            return code if code >= 0 else 128 - code


def reap(child: int) -> int | None:
    """Whatever has ended; the child's exit code if it is among them."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            return os.waitstatus_to_exitcode(status)
        if not pid:
            return None


def main() -> int:
    config, command = json.loads(sys.argv[1]), sys.argv[2:]
    if os.getpid() != 1:  # `kill -1` of a job would reach the whole machine
        os.write(1, b"refused not the first process of a PID namespace\n")
        return 1
    outside = str(Path("/proc/self").readlink())  # /proc is still the outer namespace's
    root = Path(config["root"])
    try:
        build_root(root, config)
        os.chroot(root)
        os.chdir("/")
    except OSError as error:
        os.write(1, f"refused {error.strerror}\n".encode())
        return 1
    return run(command, config, outside)


if __name__ == "__main__":
    os._exit(main())
