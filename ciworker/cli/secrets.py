"""What `ciworker doctor` says of secrets; never a value."""

import os
from collections.abc import Mapping

from ciworker.cli.finding import Finding
from ciworker.errors import SecretsRefused
from ciworker.settings import Settings
from ciworker.source.secrets import Secrets

CHECK = "secrets"
NO_VALUE = "has no value on this worker"


def look_at_secrets(settings: Settings, environ: Mapping[str, str] = os.environ) -> Finding:
    """The file's access and syntax, and which names have a value. The environment is our own: a
    worker that is a service has another one.
    """
    try:
        secrets = Secrets(settings.secrets_file, environ)
    except SecretsRefused as error:
        path = settings.secrets_file
        mend = f'chmod 600 {path}; it has to be yours, and TOML: NAME = "value"'
        return Finding(CHECK, False, str(error), mend)
    names = [entry.name for entry in settings.secret_names]
    missing = {name: secrets.why_missing(name) for name in names if secrets.value(name) is None}
    if unusable := {name: why for name, why in missing.items() if why != NO_VALUE}:
        detail = "; ".join(f"the value of {name} {why}" for name, why in unusable.items())
        return Finding(CHECK, False, detail, f"give {', '.join(unusable)} another value, or none")
    there = ", ".join(name for name in names if name not in missing) or "none"
    without = f"; without one, as this shell sees it: {', '.join(missing)}" if missing else ""
    return Finding(CHECK, True, f"with a value: {there}{without}")
