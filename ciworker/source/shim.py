"""**The archive is the go signal.** What a container's command is, and what it then runs.

The command is one constant for all containers: it waits on stdin for a length and a tar, unpacks
it into the container's own memory, proves that it is whole by the presence of its last member, and
runs that. So no secret stands in a container's configuration, a cold start and a parked member
are the same, and the exit code is the job's own. Tried on dash and busybox ash.
"""

import json
import shlex
from collections.abc import Mapping
from importlib.resources import files

from ciworker.domain.job import Backend
from ciworker.domain.mark import MARK_END, Marks
from ciworker.domain.recipe import VENV
from ciworker.domain.version import NO_VERSION, pretend_version, version_variables

WORKSPACE = "/workspace"
AGENT_SOCKET = "/run/ciworker/ssh-agent"
RUN_MEMBER = ".ciworker/run"
PROJECT_MEMBER = ".ciworker/project.py"
PROJECT_SCRIPT = files("ciworker.source").joinpath("project.py").read_bytes()
SHIM_REFUSED = 125  # the shim's own exit code, before the mark

# TAR_OPTIONS: where the worker's clock is ahead of the engine's, GNU tar would complain of each
# file in the job's own log. Other tars do not know the variable.
_COMMAND = f"""\
read -r n || exit {SHIM_REFUSED}
cd {WORKSPACE} && head -c "$n" | TAR_OPTIONS=--warning=no-timestamp tar -xf - || exit {SHIM_REFUSED}
[ -f {RUN_MEMBER} ] || exit {SHIM_REFUSED}
exec sh {RUN_MEMBER} </dev/null
"""

CONTAINER_COMMAND = ("sh", "-c", _COMMAND)

# The job's variables are set for the job alone: this shell goes by its own.
# `kill -TERM -1` reaches every process of the container but its init and this shell itself.
# A `wait` that the trap interrupts returns the signal's code, not the job's: hence the loop. It
# would also write `Terminated` into the job's own log (seen with dash): hence /dev/null.
#
# `look` tells which limits the job ran into, when it is to stop or has ended: by builtins alone,
# since at the limit of processes no fork succeeds, and without `:`, which ends dash where it cannot
# be redirected. A folder is full where no file, or no page for it, can be had. That is not tried
# where the container's memory is as good as used up: some process might be killed for it.
_RUN = """\
stopping=
room() {{
set -- /sys/fs/cgroup/memory.current /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory.stat
[ -r "$1" ] || set -- {v1}.usage_in_bytes {v1}.limit_in_bytes {v1}.stat
read -r used <"$1" && read -r most <"$2" || return 0
[ "$most" != max ] || return 0
[ "$used" -gt $((most - {spare})) ] || return 0
while read -r name count; do
case $name in inactive_file | active_file) used=$((used - count)) ;; esac
done <"$3"
[ "$used" -le $((most - {spare})) ]
}}
look() {{
met=
for file in /sys/fs/cgroup/pids.events /sys/fs/cgroup/pids/pids.events; do
[ -r "$file" ] && read -r name count <"$file" && [ "$count" -gt 0 ] && met="$met;pids"
done
room && for folder in workspace tmp; do
file=/$folder/.ciworker-limits
printf . >"$file" && continue
if [ -e "$file" ]; then met="$met;$folder-bytes"
elif [ -w /$folder ] && [ -x /$folder ]; then met="$met;$folder-files"; fi
done
[ -z "$met" ] || printf '%s%s%s\\n%s%s%s\\n' {limits} "$met" {end} {limits} "$met" {end}
}} 2>/dev/null
trap 'stopping=1; kill -TERM -1 2>/dev/null; look' TERM
printf '%s\\n' {mark}
mkdir -p {workspace}/src && cd {workspace}/src || exit {refused}
{{ {exports}
{prepare}exec sh -c {run}; }} & job=$!
wait "$job" 2>/dev/null; code=$?
while kill -0 "$job" 2>/dev/null; do wait "$job" 2>/dev/null; code=$?; done
[ -n "$stopping" ] || look
while [ -n "$stopping" ] && kill -0 -1 2>/dev/null; do sleep 0.05; done
exit "$code"
"""

# What a recipe's setup left is found where it is; other images have no such folder.
_USE_VENV = f"""\
if [ -d {VENV} ]; then
export VIRTUAL_ENV={VENV} PATH="{WORKSPACE}/bin:{VENV}/bin:$PATH"
fi
"""
_INSTALL_PROJECT = f"{VENV}/bin/python -I {WORKSPACE}/{PROJECT_MEMBER} install {{plan}}\n"

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


def run_script(
    run: str,
    env: Mapping[str, str],
    marks: Marks,
    backend: Backend | None = None,
    vcs: Mapping[str, object] | None = None,
) -> bytes:
    """The archive's last member: prints the mark, sets the environment, runs the job.

    Args:
        run: one shell command line.
        env: on top of BASE_ENV; names are valid shell names.
        marks: what it prints of itself.
        backend: installs the project first; PROJECT_MEMBER is in the archive.
        vcs: what the client's git says of the tree: it tells the backend the version.
    """
    variables = {**BASE_ENV, **env}
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
    script = _RUN.format(
        exports=exports,
        mark=shlex.quote(marks.start.decode()),
        limits=shlex.quote(marks.limits.decode()),
        end=shlex.quote(MARK_END.decode()),
        v1="/sys/fs/cgroup/memory/memory",
        spare=2**20,
        workspace=WORKSPACE,
        refused=SHIM_REFUSED,
        prepare=_USE_VENV + (_install_project(backend, vcs or {}, env) if backend else ""),
        run=shlex.quote(run),
    )
    return script.encode("utf-8", "surrogateescape")


def _install_project(backend: Backend, vcs: Mapping[str, object], env: Mapping[str, str]) -> str:
    """Only this process is told a version; one that the job itself sets goes first."""
    version = pretend_version(vcs)
    variables = version_variables(version or NO_VERSION, backend.project)
    plan = {
        "backend": backend.name,
        "path": list(backend.path),
        "variables": {name: text for name, text in variables.items() if name not in env},
        "known": version is not None,
    }
    return _INSTALL_PROJECT.format(plan=shlex.quote(json.dumps(plan)))
