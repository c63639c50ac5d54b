"""Runs as a job, and tries what a job must not be able to: a line for each, `held` or `through`.

Arguments: sockets (`ADDRESS:PORT`) to connect to, and `+ADDRESS:PORT`, which have to be reached: of
what must be held, they prove that it could be seen.
"""

import ctypes
import errno
import os
import platform
import socket
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

UID = 1000
SOCKETS = (
    "/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock",
    "/run/ciworker/ciworker.sock", "/run/podman/podman.sock", "/run/dbus/system_bus_socket",
)  # fmt: skip
# of a worker's data folder, and of the neighbour
FOREIGN = {"ciworker.db", "admin.token", "secrets.key", "NEIGHBOUR"}
FOLDERS = ("/", "/etc", "/usr", "/bin", "/usr/bin", "/root", "/var", "/opt", "/dev", "/lib")
FILES = (
    "/etc/passwd", "/etc/hosts", "/etc/resolv.conf", "/bin/sh",
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/kernel/modprobe",
    "/proc/sys/net/ipv4/ip_forward", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger",
    "/proc/irq/0/smp_affinity", "/sys/kernel/uevent_helper", "/sys/power/state",
    "/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/cgroup.procs",
)  # fmt: skip
OWN = {"workspace", "tmp", "proc", "dev/shm", "dev/mqueue", "dev/pts"}
READ_ONLY = {"/", "/sys", "/proc/sys", "/proc/irq", "/proc/bus"}
HIDDEN = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/acpi")
DEVICES = (
    "/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg", "/dev/fuse", "/dev/net/tun", "/dev/sda",
)  # fmt: skip
PLAIN = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"}
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
REFUSALS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EROFS}
NUMBERS = {
    "x86_64": {"bpf": 321, "keyctl": 250, "perf_event_open": 298, "pivot_root": 155,
               "init_module": 175, "kexec_load": 246, "add_key": 248, "userfaultfd": 323},
    "aarch64": {"bpf": 280, "keyctl": 219, "perf_event_open": 241, "pivot_root": 41,
                "init_module": 105, "kexec_load": 104, "add_key": 217, "userfaultfd": 282},
}  # fmt: skip
NAMESPACES = {
    "user": 0x10000000, "mnt": 0x20000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x8000000,
}  # fmt: skip
MS_REMOUNT, MS_BIND, MNT_DETACH = 32, 4096, 2
MARK = b"NEIGHBOUR"
PATIENCE = 2.0

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
Attempts = Iterator[tuple[str, bool]]  # what was tried, and whether it got through


def refused(code: int) -> bool:
    """Of a system call's answer: whether it was not let do what it was asked for."""
    return code == -1 and ctypes.get_errno() in REFUSALS


def opened(path: str, flags: int) -> bool:
    try:
        os.close(os.open(path, flags))
    except OSError:
        return False
    return True


def files() -> Attempts:
    for path in SOCKETS:
        for root in ("", "/proc/1/root"):
            yield f"socket {root}{path}", os.path.lexists(root + path)
    for folder in FOLDERS:
        yield f"write {folder}", opened(f"{folder}/x", os.O_CREAT | os.O_WRONLY)
    for path in FILES:
        yield f"write {path}", opened(path, os.O_WRONLY)
    for path in HIDDEN:
        yield f"read {path}", bool(content(path))
    yield "others' files", bool(foreign())
    yield "writable files", bool(writable())
    yield "writable mounts", bool(unprotected())


def content(path: str) -> bytes:
    """What it has; nothing where it is hidden or there is none."""
    try:
        if Path(path).is_dir():
            return b" ".join(os.fsencode(below) for below in Path(path).iterdir())
        return Path(path).read_bytes()
    except OSError:
        return b""


def foreign() -> set[str]:
    found: set[str] = set()
    for folder, below, names in os.walk("/"):
        if folder == "/":
            below[:] = [name for name in below if name not in ("proc", "sys")]
        found |= FOREIGN & {*below, *names}
    return found


def writable() -> list[str]:
    """Files and folders that may be written, but for those that are a job's own."""
    found = []
    for folder, below, names in os.walk("/"):
        below[:] = [name for name in below if f"{folder}/{name}".lstrip("/") not in OWN]
        paths = [folder, *(f"{folder}/{name}" for name in names)]
        found += [path for path in paths if plain(path) and os.access(path, os.W_OK)]
    return found


def plain(path: str) -> bool:
    """No device, and no link."""
    mode = Path(path).lstat().st_mode
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def unprotected() -> set[str]:
    """Mounts that are not read-only and have to be."""
    mounts = [line.split()[1:4] for line in Path("/proc/mounts").read_text().splitlines()]
    return READ_ONLY - {where for where, _, how in mounts if "ro" in how.split(",")}


def identity() -> Attempts:
    yield from rights("self").items()


def rights(process: str) -> Mapping[str, bool]:
    """By name, whether a process has more of it than a job's should."""
    said = Path(f"/proc/{process}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in said)
    return {
        **{name: int(status[name], 16) != 0 for name in CAPABILITIES},
        "NoNewPrivs": status["NoNewPrivs"].strip() != "1",
        "Seccomp": status["Seccomp"].strip() != "2",
        "Uid": status["Uid"].split() != [str(UID)] * 4,
        "Gid": status["Gid"].split() != [str(UID)] * 4,
        "Groups": not {*status["Groups"].split()} <= {str(UID)},
    }


def devices() -> Attempts:
    for path in DEVICES:
        yield f"read {path}", opened(path, os.O_RDONLY)
        yield f"write {path}", opened(path, os.O_WRONLY)
    yield "devices in /dev", bool(strange_devices())


def strange_devices() -> list[str]:
    found = []
    for folder, below, names in os.walk("/dev"):
        if "pts" in below:
            below.remove("pts")  # terminals
        for name in names:
            mode = Path(folder, name).lstat().st_mode
            if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and name not in PLAIN):
                found.append(name)
    return found


def calls() -> Attempts:
    yield "mount", not refused(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
    yield "remount /", not refused(libc.mount(b"/", b"/", None, MS_REMOUNT | MS_BIND, None))
    yield "umount", not refused(libc.umount2(b"/proc/kcore", MNT_DETACH))
    yield "chroot", not refused(libc.chroot(b"/tmp"))
    yield "sethostname", not refused(libc.sethostname(b"x", 1))
    yield "setuid", not refused(libc.setuid(0))
    yield "reboot", not refused(libc.reboot(0))
    for name, mode, device in (("disk", stat.S_IFBLK, (8, 0)), ("memory", stat.S_IFCHR, (1, 1))):
        number = ctypes.c_ulong(os.makedev(*device))
        made = libc.mknod(f"/tmp/{name}".encode(), mode | 0o666, number)
        yield f"mknod {name}", not refused(made)
    for name, flag in NAMESPACES.items():
        yield f"unshare {name}", not refused(libc.unshare(flag))
        yield f"setns {name}", entered(name)


def numbered_calls() -> Attempts:
    """What the C library has no function for."""
    numbers = NUMBERS[platform.machine()]
    attributes = ctypes.byref((ctypes.c_uint32 * 32)(1, 4, 4, 1))  # of a small map
    for name, words in (
        ("bpf", (0, attributes, 48)),
        ("keyctl", (0, -3, 0)),
        ("add_key", (b"user", b"x", b"y", 1, -3)),
        ("perf_event_open", (attributes, 0, -1, -1, 0)),
        ("pivot_root", (b"/tmp", b"/tmp")),
        ("init_module", (None, 0, b"")),
        ("kexec_load", (0, 0, None, 0)),
        ("userfaultfd", (0,)),
    ):
        yield name, not refused(libc.syscall(numbers[name], *words))


def entered(name: str) -> bool:
    """Whether it can have the namespace of pid 1, and is let into it."""
    try:
        descriptor = os.open(f"/proc/1/ns/{name}", os.O_RDONLY)
    except OSError:
        return False
    return not refused(libc.setns(descriptor, 0))


def processes() -> Attempts:
    """A job may trace the container's init, which is its own user's: it gains nothing by that."""
    found = [folder.name for folder in Path("/proc").glob("[0-9]*")]
    yield "the neighbour's processes", any(MARK in told(process) for process in found)
    yield "processes with more rights", any(stronger(process) for process in found)


def told(process: str) -> bytes:
    return content(f"/proc/{process}/cmdline") + content(f"/proc/{process}/environ")


def stronger(process: str) -> bool:
    try:
        return any(rights(process).values())
    except FileNotFoundError:
        return False  # it has ended


def sockets() -> Attempts:
    for name, family in (("packet", socket.AF_PACKET), ("raw", socket.AF_INET)):
        yield f"{name} socket", made(family)
    interfaces = content("/proc/net/if_inet6").split(b"\n")
    yield "an IPv6 address", any(line and not line.endswith(b" lo") for line in interfaces)
    for target in sys.argv[1:]:
        address, _, port = target.lstrip("+").rpartition(":")
        yield f"connect {target}", connected(address, int(port)) != target.startswith("+")


def made(family: int) -> bool:
    try:
        socket.socket(family, socket.SOCK_RAW, 1).close()
    except OSError:
        return False
    return True


def connected(address: str, port: int) -> bool:
    """Reached; also where nobody listens and the other side says so itself."""
    try:
        socket.create_connection((address, port), PATIENCE).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


def main() -> None:
    for group in (files, identity, devices, calls, numbered_calls, processes, sockets):
        for name, through in group():
            print("through" if through else "held", name, flush=True)
    print("tried everything", flush=True)


if __name__ == "__main__":
    main()
