"""The commands. They talk to the worker that runs; `serve` becomes it.

It is handed what `serve` runs: this room stands below the composition root.
"""

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from ciworker.cli import audit as deeds
from ciworker.cli import drain as draining
from ciworker.cli import environments, rules, webhooks
from ciworker.cli import pool as parking
from ciworker.cli.api import Unreachable, call
from ciworker.cli.tokens import RoleName, lifetime, locked_out, login_link, token_book, told
from ciworker.domain.environment import SHOWN
from ciworker.errors import CiworkerError
from ciworker.harmless import harmless
from ciworker.settings import Settings, load
from ciworker.units import parse_duration, plural

Serve = Callable[[Settings], None]
Config = Annotated[
    Path | None, typer.Option("--config", help="A TOML file; its top-level keys are settings.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

UNREACHABLE = 3
TIMED_OUT = 124
INTERRUPTED = 130

cli = typer.Typer(
    name="ciworker",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
token = typer.Typer(
    help="Make, list and revoke access tokens; make login links.", no_args_is_help=True
)
cli.add_typer(token, name="token")
env = typer.Typer(
    help="List and remove environments: what setups left behind.", no_args_is_help=True
)
cli.add_typer(env, name="env")
pool = typer.Typer(
    help="Containers that are kept parked for jobs: have them, have none, see them.",
    no_args_is_help=True,
)
cli.add_typer(pool, name="pool")
webhook = typer.Typer(
    help="What others are told of jobs: try it, see it, send it again.", no_args_is_help=True
)
cli.add_typer(webhook, name="webhook")
firewall = typer.Typer(
    help="Keep jobs that have the network away from this machine: rules of iptables, as root.",
    no_args_is_help=True,
)
cli.add_typer(firewall, name="firewall")
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="ADDRESS:PORT",
        help="Let jobs reach this service of the machine, such as a proxy; may be repeated.",
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"ciworker {version('ciworker')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit."),
]


@cli.callback()
def everywhere(version: Version = False) -> None:
    """A self-hosted CI worker for Python test suites."""


def run(serve: Serve) -> None:
    """Run the command line.

    Args:
        serve: runs the worker; returns when it was told to stop.
    """
    cli(obj=serve)


@cli.command("serve")
def serve_command(context: typer.Context, config: Config = None) -> None:
    """Run the worker until SIGTERM. Jobs go on without it; the next one adopts them."""
    with _explained():
        start: Serve = context.obj
        start(load(config))


@cli.command()
def resync(config: Config = None) -> None:
    """Compare everything with the Docker engine now, and print what was done."""
    with _explained():
        report = call(load(config), "POST", "/resync")
    for bucket, names in report.items():
        if isinstance(names, list) and names and bucket != "unchanged":
            typer.echo(f"[resync] {bucket}: {', '.join(names)}")
    typer.echo(f"[resync] unchanged: {len(report['unchanged'])}, repairs: {report['repairs']}")


@cli.command()
def drain(
    timeout: Annotated[
        str | None,
        typer.Option(metavar="D", help="Wait no longer than this (90, 90s, 10m, 2h): exit 124."),
    ] = None,
    take_jobs_again: Annotated[
        bool, typer.Option("--undo", help="Have the worker take and start jobs again.")
    ] = False,
    config: Config = None,
) -> None:
    """Have the worker take no jobs, wait for those that run, and exit; wait for that.

    Queued jobs stay queued: the next worker starts them. Ended by --timeout or Ctrl-C, this
    command leaves the worker draining.
    """
    with _explained():
        settings = load(config)
        if take_jobs_again:
            draining.undo(settings)
            typer.echo("the worker takes jobs again")
            return
        _drained(settings, None if timeout is None else parse_duration(timeout))


def _drained(settings: Settings, timeout: float | None) -> None:
    try:
        for line in draining.drain(settings, timeout):
            typer.echo(line)
    except draining.NotDrained as error:
        typer.echo(f"ciworker: {error}", err=True)
        raise typer.Exit(1) from None
    except TimeoutError:
        typer.echo(f"ciworker: not drained in time: {draining.GOES_ON}", err=True)
        raise typer.Exit(TIMED_OUT) from None
    except KeyboardInterrupt:
        typer.echo(f"ciworker: {draining.GOES_ON}", err=True)
        raise typer.Exit(INTERRUPTED) from None


@token.command("create")
def token_create(
    name: Annotated[str, typer.Argument(help="Whose it is; histories show it.")],
    role: Annotated[
        RoleName, typer.Option(help="What it may do; each includes the one before.")
    ] = "submit",
    expires: Annotated[
        str | None,
        typer.Option(metavar="D", help="It opens nothing after that long: 12h, 30d. Else never."),
    ] = None,
    config: Config = None,
) -> None:
    """Make a token and print its text, which cannot be had again."""
    with _explained():
        expires_in = None if expires is None else lifetime(expires)
        typer.echo(token_book(load(config)).create(name, role, expires_in))


@token.command("list")
def token_list(config: Config = None, as_json: Json = False) -> None:
    """List all tokens, without their text."""
    with _explained():
        items = token_book(load(config)).list()
    now = datetime.now(UTC)
    _show(items, (told(item, now) for item in items), as_json=as_json)


@token.command("revoke")
def token_revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `token list` shows it.")],
    config: Config = None,
) -> None:
    """From now on the token opens nothing."""
    with _explained():
        settings = load(config)
        token_book(settings).revoke(token_id)
    typer.echo(f"revoked {token_id}", err=True)
    if warning := locked_out(settings, token_id):
        typer.echo(f"ciworker: {warning}", err=True)


@token.command("link")
def token_link(config: Config = None) -> None:
    """Print a link that logs a browser in as admin: once, within 5 minutes."""
    with _explained():
        typer.echo(login_link(load(config)))


@cli.command()
def audit(
    since: Annotated[
        str | None,
        typer.Option(metavar="D", help="No longer ago than this (12h, 30d), or since an instant."),
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="At most so many.")] = 50,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Print who did what, newest first, of a worker that runs or is stopped."""
    with _explained():
        items = deeds.history(load(config), since, limit)
    _show(items, map(deeds.told, items), as_json=as_json)


@env.command("list")
def env_list(config: Config = None, as_json: Json = False) -> None:
    """List all environments, and say what the cache of them was worth."""
    with _explained():
        report = environments.listed(load(config))
    _show(report, environments.told(report), as_json=as_json)
    if not as_json:
        typer.echo(environments.summary(report), err=True)


@env.command("remove")
def env_remove(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="As `env list` shows them.")],
    config: Config = None,
) -> None:
    """Remove environments that no job needs; the next job that does sets its own up anew."""
    with _explained():
        for key in keys:
            typer.echo(f"removed {environments.remove(load(config), key)[:SHOWN]}")


@env.command("prune")
def env_prune(config: Config = None) -> None:
    """Remove all environments that no job needs."""
    with _explained():
        removed = environments.prune(load(config))
    for key in removed:
        typer.echo(f"removed {key[:SHOWN]}")
    typer.echo(f"{plural(len(removed), 'environment')} removed", err=True)


@pool.command("up")
def pool_up(config: Config = None) -> None:
    """Have all members that the settings name and no others; exit 1 if some failed.

    Those are tried again, as `pool status` tells.
    """
    _turned(config, down=False)


@pool.command("down")
def pool_down(config: Config = None) -> None:
    """Remove all members, whoever's settings they were, and have none until `pool up`.

    Jobs that took one go on; others start in containers of their own.
    """
    _turned(config, down=True)


def _turned(config: Path | None, *, down: bool) -> None:
    with _explained():
        lines, done = parking.turn(load(config), down=down)
    for line in lines:
        typer.echo(line)
    if not done:
        raise typer.Exit(1)


@pool.command("status")
def pool_status(config: Config = None, as_json: Json = False) -> None:
    """Print what is wanted and each member that the engine has, with its errors."""
    with _explained():
        report = parking.status(load(config))
    _show(report, parking.told(report), as_json=as_json)


@webhook.command("test")
def webhook_test(
    name: Annotated[
        str | None, typer.Argument(help="As `webhook list` shows it; left out: all.")
    ] = None,
    config: Config = None,
) -> None:
    """Send a test message to a webhook of the settings; exit 1 if it did not arrive."""
    with _explained():
        found = webhooks.tested(load(config), name)
    for item in found:
        typer.echo(webhooks.line(item))
    if any(item["state"] != "delivered" for item in found):
        raise typer.Exit(1)


@webhook.command("list")
def webhook_list(
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that were delivered, up to a week ago.")
    ] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List the webhooks, and the newest messages that are pending or were given up."""
    with _explained():
        report = webhooks.listed(load(config), everything=everything)
    _show(report, webhooks.told(report), as_json=as_json)


@webhook.command("redeliver")
def webhook_redeliver(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="As `webhook list` shows.")],
    config: Config = None,
) -> None:
    """Send messages again that were delivered or given up, with the same id."""
    with _explained():
        settings = load(config)
        for delivery_id in ids:
            webhooks.redelivered(settings, delivery_id)
            typer.echo(f"{delivery_id} is sent again")


@firewall.command("install")
def firewall_install(allow: Allow = None) -> None:
    """Refuse jobs all connections to this machine, and to link-local addresses.

    Replaces what was installed before. Rules do not outlive a boot: scripts/ciworker.service
    installs them at each start. Without root it prints them, and changes nothing.
    """
    with _explained(), _rules_printed(allow) as allowed:
        for line in rules.install(allowed):
            typer.echo(line)


@firewall.command("remove")
def firewall_remove() -> None:
    """Remove exactly the rules that `install` made."""
    with _explained():
        for line in rules.remove():
            typer.echo(f"removed {line}", err=True)


@firewall.command("show")
def firewall_show(allow: Allow = None) -> None:
    """Print the rules as commands, and which of them stand; exit 1 if one is missing."""
    with _explained(), _rules_printed(allow) as allowed:
        lines, complete = rules.show(allowed)
    for line in lines:
        typer.echo(line)
    if not complete:
        raise typer.Exit(1)


@contextmanager
def _rules_printed(allow: list[str] | None) -> Iterator[list[rules.Service]]:
    """The services that are named; where the filter is out of reach, the rules are printed."""
    allowed = [rules.service(text) for text in allow or ()]
    try:
        yield allowed
    except rules.CannotFilter:
        for line in rules.commands(rules.usual(allowed)):
            typer.echo(line)
        raise


@cli.command()
def backup(
    file: Annotated[Path, typer.Argument(help="Where the copy goes; must not exist.")],
    config: Config = None,
) -> None:
    """Copy the database to FILE, while the worker runs or not; checked before this says done.

    It holds jobs with their history and logs, tokens and environments; no workspaces.

    To restore: stop the worker; copy FILE over `ciworker.db` in the data folder and remove
    `ciworker.db-wal` and `ciworker.db-shm` there; start the worker. In a new data folder it writes
    an admin token of its own. Queued jobs whose workspace is not there any more end as
    `workspace_invalid`, and those that ran when the copy was made as `container_lost`, if their
    containers are gone: submit those again.
    """
    from ciworker.cli.backup import backup as made

    with _explained():
        typer.echo(made(load(config), file))


@cli.command()
def doctor(config: Config = None, as_json: Json = False) -> None:
    """Check what the worker needs; each trouble comes with the line that mends it."""
    from ciworker.cli.doctor import examine

    with _explained():
        findings = asyncio.run(examine(load(config)))
    _show(list(map(asdict, findings)), (each.line() for each in findings), as_json=as_json)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _show(found: object, lines: Iterable[str], *, as_json: bool) -> None:
    """What was found, as one document or as lines for a person."""
    for text in [json.dumps(found, indent=2)] if as_json else lines:
        typer.echo(text)


@contextmanager
def _explained() -> Iterator[None]:
    """Errors as sentences on stderr: exit 3 for a worker that is not there, else 2."""
    try:
        yield
    except (ValueError, CiworkerError, OSError) as error:
        lines = f"ciworker: {error}".split("\n")
        typer.echo("\n".join(map(harmless, lines)), err=True)
        code = UNREACHABLE if isinstance(error, Unreachable) else 2
        raise typer.Exit(code) from error
