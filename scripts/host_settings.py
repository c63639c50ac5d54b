"""Prints what jobs need of this host's network settings, for the shell that starts the worker.

`eval "$(python3 scripts/host_settings.py)"` exports CIWORKER_JOB_MOUNTS and CIWORKER_JOB_ENV, each
unless it is set already: the host's CA bundle, mounted read-only, its proxy and its package index.
With the argument `docker`, the same as options of `docker run`, one a line.

Left out is what a container could not reach (local folders, localhost), and an address with
credentials in it, which every job could read.
"""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

CA_NAMES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")
CA_NEEDED = CA_NAMES[:3]
INDEX_NAMES = (
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
)
PROXY_NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
PLAIN_NAMES = ("PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT", "NO_PROXY", "no_proxy")


def bundles() -> dict[str, str]:
    """Name of a variable -> real path of the CA bundle it names, if a local engine can mount it."""
    if not os.environ.get("DOCKER_HOST", "unix://").startswith("unix://"):
        return {}
    found = {name: Path(value) for name in CA_NAMES if (value := os.environ.get(name))}
    paths = {name: str(path.resolve()) for name, path in found.items() if path.is_file()}
    return {name: path for name, path in paths.items() if ":" not in path}


def certificates() -> tuple[list[str], dict[str, str]]:
    """The mounts (`source:target:ro`), and the variables as a job sees them."""
    sources = bundles()
    targets: dict[str, str] = {}
    for path in sources.values():
        targets.setdefault(path, f"/etc/ciworker/ca-bundle-{len(targets) + 1}.pem")
    env = {name: targets[path] for name, path in sources.items()}
    if targets:  # no single one of them is honoured by every program
        env = dict.fromkeys(CA_NEEDED, next(iter(targets.values()))) | env
    return [f"{source}:{target}:ro" for source, target in targets.items()], env


def is_for_jobs(name: str, address: str) -> bool:
    # An address may lack its scheme (a proxy's) or carry a name (uv's `name=https://...`).
    url = urlsplit(address if "://" in address else f"//{address}")
    if "@" in url.netloc:
        print(f"{name} holds credentials and is not given to jobs", file=sys.stderr)
        return False
    local = url.hostname is None or url.hostname in {"localhost", "::1"}
    return not local and not str(url.hostname).startswith("127.")


def addresses() -> Iterator[tuple[str, str]]:
    for name in (*INDEX_NAMES, *PROXY_NAMES):
        kept = [one for one in os.environ.get(name, "").split() if is_for_jobs(name, one)]
        if kept:
            yield name, " ".join(kept)


def main() -> None:
    mounts, env = certificates()
    env |= dict(addresses())
    env |= {name: value for name in PLAIN_NAMES if (value := os.environ.get(name))}
    if sys.argv[1:] == ["docker"]:
        lines = [f"--volume={mount}" for mount in mounts]
        lines += [f"--env={name}={value}" for name, value in env.items()]
    else:
        settings = {"CIWORKER_JOB_MOUNTS": json.dumps(mounts), "CIWORKER_JOB_ENV": json.dumps(env)}
        lines = [
            f"export {name}={shlex.quote(value)}"
            for name, value in settings.items()
            if name not in os.environ
        ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
