"""From a `ContainerSpec` to the engine's own configuration: everything a job may not do.

Each line was tried on a real engine (engine-facts, "Containment" and "What an image brings
along"). The workspace is memory: it is gone with the container and no disk can be filled with it.

A container that installs packages is root and writes to its own file system, which is what is kept
of it; everything else holds for it too.

A container without network gets no endpoint of the engine's at all: the runtime gives it a network
of its own with nothing but a loopback device. With mode `none` alone the engine makes an endpoint
of a network that leads nowhere, which doubles the time of a start and of an end, and over which
20.10 hangs for good (`processEndpointDelete` against `getSvcRecords`). What the engine no longer
writes then is /etc/hosts, without which `localhost` has no address; so it is mounted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ciworker.engine import network
from ciworker.engine.port import ContainerSpec

UID = 1000
INODES = 200_000
SHM_SIZE = 64 * 2**20
HOSTS = "/etc/hosts"
HOSTS_TEXT = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

# Tried one by one with apt-get and packages that add users and set-id files. Without FSETID their
# setgid bits are lost in silence; without KILL no stop reaches a process of another user.
INSTALL_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID")


def write_hosts(folder: Path) -> Path:
    """The hosts file of containers without network, in this folder."""
    path = folder / "hosts"
    if not path.exists() or path.read_text() != HOSTS_TEXT:
        path.write_text(HOSTS_TEXT)
    path.chmod(0o644)  # read by the jobs' user
    return path


def container_config(spec: ContainerSpec, hosts: Path | None = None) -> dict[str, object]:
    """The body of the engine's create call.

    hosts: their hosts file as the engine's machine has it; None if it has none: then a container
    without network is on the engine's own network `none`.
    """
    return {
        "Image": spec.image,
        "Entrypoint": [],
        "Cmd": list(spec.command),
        "User": f"{_uid(spec)}:{_uid(spec)}",
        "WorkingDir": "/",
        "Labels": dict(spec.labels),
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "NetworkDisabled": hosts is not None and not spec.network,
        "HostConfig": {**_host_config(spec), "Mounts": _mounts(spec, hosts)},
    }


def limits_config(memory: int, cpus: float) -> dict[str, int]:
    """What can be changed while a container runs. memory in bytes, cpus in cores."""
    return {
        "Memory": memory,
        "MemorySwap": memory,  # equal: no swap
        "NanoCpus": int(cpus * 1e9),
    }


def _host_config(spec: ContainerSpec) -> dict[str, object]:
    return {
        "NetworkMode": network.NAME if spec.network else "none",
        "ReadonlyRootfs": not spec.installs,
        "Init": True,
        "CapDrop": ["ALL"],
        **({"CapAdd": list(INSTALL_CAPABILITIES)} if spec.installs else {}),
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "PidsLimit": spec.pids,
        **limits_config(spec.memory, spec.cpus),
        "ShmSize": SHM_SIZE,
        "Tmpfs": _tmpfs(spec),
        "Binds": list(spec.mounts),
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": str(spec.log_max_size), "max-file": "1"},
        },
    }


def _mounts(spec: ContainerSpec, hosts: Path | None) -> Sequence[Mapping[str, object]]:
    own = any(mount.split(":")[1] == HOSTS for mount in spec.mounts)
    if spec.network or hosts is None or own:
        return ()
    return [{"Type": "bind", "Source": str(hosts), "Target": HOSTS, "ReadOnly": True}]


def _uid(spec: ContainerSpec) -> int:
    return 0 if spec.installs else UID


def _tmpfs(spec: ContainerSpec) -> Mapping[str, str]:
    size = f"size={spec.workspace_size},nr_inodes={INODES}"
    own = f"uid={_uid(spec)},gid={_uid(spec)},exec,{size}"
    covered = dict.fromkeys(spec.volumes, f"mode=0700,{own}")
    return {
        **covered,  # an image's VOLUME would be a writable disk
        "/workspace": f"mode=0700,{own}",
        "/tmp": f"mode=1777,exec,{size}",  # noqa: S108 # inside the container
    }
