"""**The archive is the go signal.** What a container's command is, and what it then runs.

The command is one constant for all containers: it waits on stdin for a length and a tar, unpacks
it into the container's own memory, proves that it is whole by the presence of its last member, and
runs that. So no secret stands in a container's configuration, a cold start and a parked member
are the same, and the exit code is the job's own. Tried on dash and busybox ash.
"""

import shlex
from collections.abc import Mapping

WORKSPACE = "/workspace"
RUN_MEMBER = ".ciworker/run"
SHIM_REFUSED = 125  # the shim's own exit code, before the mark

_COMMAND = f"""\
read -r n || exit {SHIM_REFUSED}
cd {WORKSPACE} && head -c "$n" | tar -xf - || exit {SHIM_REFUSED}
[ -f {RUN_MEMBER} ] || exit {SHIM_REFUSED}
exec sh {RUN_MEMBER} </dev/null
"""

CONTAINER_COMMAND = ("sh", "-c", _COMMAND)

# The job's variables are set for the job alone: this shell goes by its own.
# `kill -TERM -1` reaches every process of the container but its init and this shell itself.
# A `wait` that the trap interrupts returns the signal's code, not the job's: hence the loop. It
# would also write `Terminated` into the job's own log (seen with dash): hence /dev/null.
_RUN = """\
stopping=
trap 'stopping=1; kill -TERM -1 2>/dev/null' TERM
printf '%s\\n' {mark}
mkdir -p {workspace}/src && cd {workspace}/src || exit {refused}
{{ {exports}
exec sh -c {run}; }} & job=$!
wait "$job" 2>/dev/null; code=$?
while kill -0 "$job" 2>/dev/null; do wait "$job" 2>/dev/null; code=$?; done
while [ -n "$stopping" ] && kill -0 -1 2>/dev/null; do sleep 0.05; done
exit "$code"
"""

BASE_ENV: Mapping[str, str] = {
    "CI": "true",
    "PYTHONUNBUFFERED": "1",
    "FORCE_COLOR": "1",
    "TERM": "xterm-256color",
    "COLUMNS": "120",
    "HOME": WORKSPACE,
    "USER": "ciworker",
    "LOGNAME": "ciworker",
}


def run_script(run: str, env: Mapping[str, str], mark: bytes) -> bytes:
    """The archive's last member: prints the mark, sets the environment, runs the job.

    Args:
        run: one shell command line.
        env: on top of BASE_ENV; names are valid shell names.
        mark: the start mark's line, without its newline.
    """
    variables = {**BASE_ENV, **env}
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
    script = _RUN.format(
        exports=exports,
        mark=shlex.quote(mark.decode()),
        workspace=WORKSPACE,
        refused=SHIM_REFUSED,
        run=shlex.quote(run),
    )
    return script.encode("utf-8", "surrogateescape")
