"""The commands of `ciclient`, their options, and the one place where errors become exit codes.

A command imports what it needs when it runs: nothing here may slow down the first line of output.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ciclient import options
from ciclient.errors import ClientError, Detached, OutputClosed, Refused, Usage
from ciclient.interrupts import detachable, time_limit
from ciclient.sanitise import clean
from ciclient.terminal import Terminal

if TYPE_CHECKING:
    from ciclient.api import Api, Params
    from ciclient.config import Access
    from ciclient.submit import Prepared
    from ciclient.wire import Job

app = typer.Typer(
    name="ciclient",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich's help costs 70 ms before its first character
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"ciclient {version('ciworker')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit."),
]
Server = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="The worker; see `login`.")
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", metavar="FILE", help="Holds the token to use.")
]
JobReference = Annotated[
    str | None,
    typer.Argument(
        metavar="JOB",
        help="An id, the first 6 or more characters of one, or - for stdin; "
        "left out: the newest job submitted from this folder.",
    ),
]
Source = Annotated[
    Path | None,
    typer.Argument(
        metavar="PATH", help="A folder, or a ready tar or zip file; left out: this folder."
    ),
]
Git = Annotated[
    str | None,
    typer.Option("--git", metavar="URL", help="A repository for the worker to fetch instead."),
]
Ref = Annotated[
    str | None, typer.Option("--ref", help="Its branch, tag or commit; the default branch.")
]
Detach = Annotated[bool, typer.Option("--detach", "--async", help="Print the id alone and return.")]
Network = Annotated[
    bool | None, typer.Option("--network/--no-network", help="Access to the network.")
]
Rebuild = Annotated[
    bool, typer.Option("--rebuild", help="Run the setup anew; later jobs use what it makes.")
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Run the setup for this job alone; keep nothing of it.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List what would be packed; send nothing.")]
Raw = Annotated[bool, typer.Option("--raw", help="Let all control sequences of the job through.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document.")]
LAST_PATIENCE = 2.0  # seconds that a verdict may wait for what is told besides
JobStatus = Literal["queued", "starting", "running", "completed", "cancelled", "failed"]


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Runs one command line and returns its exit code; errors are printed."""
    arguments, command = options.split_command(argv)
    try:
        app(arguments, prog_name="ciclient", obj=command)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except OutputClosed as error:
        return error.exit_code
    except ClientError as error:
        return _report(error)
    raise AssertionError("typer leaves with SystemExit")


@app.callback()
def everywhere(
    context: typer.Context,
    server: Server = None,
    token_file: TokenFile = None,
    version: Version = False,
) -> None:
    """Submit Python test suites to a ciworker and watch them run.

    Which worker, and with which token: as the options say; else these variables; else what `login`
    stored; else the worker of this machine, with its own admin token.

    \b
      CICLIENT_SERVER      the worker's URL
      CICLIENT_TOKEN       the token to use
      CICLIENT_TOKEN_FILE  a file that holds it, read where CICLIENT_TOKEN is not set
    """
    given = {"server": server, "token_file": token_file}
    known = {name: value for name, value in given.items() if value is not None}
    if context.invoked_subcommand is not None:
        context.default_map = {context.invoked_subcommand: known}


@app.command()
def submit(
    *,
    context: typer.Context,
    path: Source = None,
    git: Git = None,
    ref: Ref = None,
    detach: Detach = False,
    image: Annotated[str | None, typer.Option(help="Container image.")] = None,
    timeout: Annotated[str | None, typer.Option(help="For example 90s, 10m, 2h.")] = None,
    memory: Annotated[str | None, typer.Option(help="For example 512m, 2g.")] = None,
    cpus: Annotated[float | None, typer.Option(help="For example 2 or 0.5.")] = None,
    network: Network = None,
    env: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Repeatable.")] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="One that the worker may pass on. Repeatable."),
    ] = None,
    priority: Annotated[int | None, typer.Option(help="Higher runs earlier.")] = None,
    project: Annotated[str | None, typer.Option(help="The job's project.")] = None,
    rebuild: Rebuild = False,
    no_cache: NoCache = False,
    dry_run: DryRun = False,
    raw: Raw = False,
    server: Server = None,
    token_file: TokenFile = None,
) -> None:
    """Submit a folder, or a repository's URL, and follow the job.

    Packed is what git lists, as it is on disk; outside git, all that `.gitignore` does not name.
    A `.ciignore` file, written like a `.gitignore`, leaves out more.

    What stands after -- replaces the job file's `run`. Each of these words is one argument, with
    no shell to read it: shell syntax needs one, as in the second line.

    \b
      ciclient submit . -- pytest -x
      ciclient submit . -- sh -c 'make && pytest'

    Exit codes: 0 passed, 1 completed without success, 3 no verdict, 4 cancelled.
    """
    terminal = Terminal()
    source = options.git(git, ref, path, dry_run=dry_run)
    root = path or Path()
    with terminal.noting(f"looking at {root.resolve()}"):
        from ciclient.submit import Overrides, list_contents, prepared

        overrides = Overrides(
            image=image,
            timeout=timeout,
            memory=memory,
            cpus=options.cpus(cpus),
            network=network,
            env=options.environment(env or []),
            secrets=secret or None,
            priority=priority,
            project=project,
            cache=options.cache(rebuild=rebuild, no_cache=no_cache),
            git=source,
            command=options.command(context.obj),
        )
        if dry_run:
            list_contents(root, terminal)
            return
        access = _access(terminal, server, token_file)
        with prepared(root, overrides, terminal) as parts, _connected(terminal, access) as api:
            raise typer.Exit(_submit(terminal, api, parts, detach=detach, raw=raw))


@app.command()
def follow(
    *,
    job: JobReference = None,
    tail: Annotated[int | None, typer.Option(min=1, help="Begin with the last N lines.")] = None,
    now: Annotated[bool, typer.Option("--now", help="New lines only.")] = False,
    raw: Raw = False,
    server: Server = None,
    token_file: TokenFile = None,
) -> None:
    """Show a job live, from its first line to its end."""
    from ciclient.jobs import find_job

    if now and tail is not None:
        raise Usage("--now and --tail exclude each other")
    terminal = Terminal()
    start: Params = {"now": 1} if now else {"from": 1} if tail is None else {"tail": tail}
    with _connection(terminal, server, token_file) as api:
        found = find_job(api, job)
        with detachable(found.id):
            ended = _shown(terminal, api, found, start, raw=raw)
        raise typer.Exit(_concluded(terminal, api, ended, raw=raw))


@app.command()
def wait(
    *,
    job: JobReference = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Print the log as it goes.")
    ] = False,
    timeout: Annotated[
        str | None, typer.Option(metavar="D", help="Give up after 90s, 10m, 2h (exit code 124).")
    ] = None,
    raw: Raw = False,
    server: Server = None,
    token_file: TokenFile = None,
) -> None:
    """Wait for the end of a job, then print its verdict."""
    from ciclient.jobs import find_job
    from ciclient.report import FAILURES, exit_code, last_lines, next_steps, verdict

    terminal = Terminal()
    with time_limit(timeout), _connection(terminal, server, token_file) as api:
        found = find_job(api, job)
        with detachable(found.id):
            ended = _waited(terminal, api, found, from_beginning=from_beginning, raw=raw)
        if exit_code(ended) in FAILURES:
            ended = _detailed(api, ended)
            shown = [] if from_beginning else last_lines(ended)
            terminal.say("\n".join([*shown, *next_steps(ended, api.access.server)]))
    terminal.out_line(verdict(ended, datetime.now(UTC)))
    raise typer.Exit(exit_code(ended))


@app.command()
def logs(
    *,
    job: JobReference = None,
    tail: Annotated[int | None, typer.Option(min=1, help="Only the last N lines.")] = None,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="Put each line's time before it.")
    ] = False,
    stream: Annotated[
        Literal["stdout", "stderr"] | None, typer.Option(help="Only what came on this one.")
    ] = None,
    raw: Raw = False,
    server: Server = None,
    token_file: TokenFile = None,
) -> None:
    """Print the log so far, exact bytes."""
    from ciclient.jobs import find_job
    from ciclient.report import why_empty
    from ciclient.views import print_log

    terminal = Terminal()
    params = {"tail": tail, "stream": stream, "timestamps": 1 if timestamps else None}
    with _connection(terminal, server, token_file) as api:
        found = find_job(api, job)
        with api.log(found.id, params) as blocks:
            anything = print_log(blocks, terminal, raw=raw)
    if not anything:
        terminal.say(why_empty(found, stream))


@app.command("list")
def list_jobs(
    *,
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs in this state.")] = None,
    project: Annotated[str | None, typer.Option(help="Only this project's jobs.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: AsJson = False,
    server: Server = None,
    token_file: TokenFile = None,
) -> None:
    """List jobs, newest first."""
    from ciclient.jobs import newest_jobs

    terminal = Terminal()
    with _connection(terminal, server, token_file) as api:
        page = newest_jobs(api, limit, status=status, project=project)
    if as_json:
        document = {"items": [dict(job.raw) for job in page.jobs], "next": page.next}
        terminal.out_line(json.dumps(document, indent=2))
    elif page.jobs:
        terminal.out_line(_table(terminal, page.jobs))
    else:
        terminal.say("no job matches" if status or project else "there are no jobs yet")


@app.command()
def show(
    job: JobReference = None,
    as_json: AsJson = False,
    server: Server = None,
    token_file: TokenFile = None,
) -> None:
    """Show everything known about a job."""
    from ciclient.jobs import find_job
    from ciclient.report import describe

    terminal = Terminal()
    with _connection(terminal, server, token_file) as api:
        found = api.job(find_job(api, job).id)
    if as_json:
        terminal.out_line(json.dumps(dict(found.raw), indent=2))
    else:
        terminal.out_line(describe(found, datetime.now(UTC)))


@app.command()
def cancel(
    jobs: Annotated[
        list[str], typer.Argument(metavar="JOB...", help="Ids or prefixes; - for stdin.")
    ],
    server: Server = None,
    token_file: TokenFile = None,
) -> None:
    """Cancel jobs."""
    from ciclient.jobs import expand, find_named

    terminal = Terminal()
    code = 0
    with _connection(terminal, server, token_file) as api:
        for word in expand(jobs):
            try:
                job = api.cancel(find_named(api, word).id)
            except (Usage, Refused) as error:
                terminal.say(f"{word}: {error}")
                code = max(code, error.exit_code)
            else:
                asked = "cancelled" if job.ended else "is being cancelled"
                terminal.out_line(f"{clean(job.id)} {asked}")
    raise typer.Exit(code)


@app.command()
def retry(job: JobReference = None, server: Server = None, token_file: TokenFile = None) -> None:
    """Run a job once more, as a new job."""
    from ciclient.jobs import find_job

    terminal = Terminal()
    with _connection(terminal, server, token_file) as api:
        again = api.retry(find_job(api, job).id)
        _remember(terminal, api, again)
    terminal.out_line(clean(again.id))
    terminal.say(f"follow it:  ciclient follow {again.id}")


@app.command()
def resync(server: Server = None, token_file: TokenFile = None) -> None:
    """Compare all containers with what is wanted (admin)."""
    from ciclient import report

    terminal = Terminal()
    with _connection(terminal, server, token_file) as api:
        terminal.out_line(report.resync(api.resync()))


@app.command("open")
def open_page(
    job: JobReference = None,
    print_only: Annotated[
        bool, typer.Option("--print", help="Print the link instead of opening it.")
    ] = False,
    server: Server = None,
    token_file: TokenFile = None,
) -> None:
    """Open a job's page in the browser, logged in; without any job here, the list's."""
    from ciclient.open import page_of, show, usable_link

    terminal = Terminal()
    with _connection(terminal, server, token_file) as api:
        page = page_of(api, job)
        link = usable_link(api.login_link(page), api.access.server)
    if not print_only and show(link):
        terminal.say(f"opened {page} in the browser")
        return
    terminal.out_line(clean(link))
    terminal.say("the link is good for one use, within 5 minutes")


@app.command()
def login(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Such as http://127.0.0.1:8480, or unix:/PATH.")
    ],
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="FILE", help="Holds the token; - is stdin."),
    ] = None,
) -> None:
    """Try a token on a server and store both."""
    from ciclient.config import Access, is_loopback, normalise_server, store_login

    terminal = Terminal()
    server = normalise_server(url)
    access = Access(server, "the command line", _login_token(token_file), "the command line")
    with _connected(terminal, access) as api:
        api.jobs({"limit": 1})
    path = store_login(server, access.token or "")
    if server.startswith("http:") and not is_loopback(server):
        terminal.say("note: over http the token travels unencrypted")
    terminal.say(f"logged in to {server}; stored in {path}")


@app.command()
def doctor(as_json: AsJson = False, server: Server = None, token_file: TokenFile = None) -> None:
    """Check server, token, clock, git and folders."""
    from ciclient.config import find_access
    from ciclient.doctor import as_document, as_text, examine, healthy
    from ciclient.sanitise import clean_block

    checks = examine(find_access(server, token_file))
    text = json.dumps(as_document(checks), indent=2) if as_json else as_text(checks)
    Terminal().out(clean_block(text.split("\n"), colour=False))
    raise typer.Exit(0 if healthy(checks) else 1)


def _submit(terminal: Terminal, api: "Api", parts: "Prepared", *, detach: bool, raw: bool) -> int:
    """Sends it, follows the job unless that is to be left alone, and returns the exit code."""
    job = _send(api, parts)
    with detachable(job.id):
        _remember(terminal, api, job)
        if detach:
            terminal.out_line(clean(job.id))
            return 0
        terminal.say(f"submitted {job.id}")
        ended = _shown(terminal, api, job, {"from": 1}, raw=raw, established=True)
    return _concluded(terminal, api, ended, raw=raw)


def _send(api: "Api", parts: "Prepared") -> "Job":
    from secrets import token_urlsafe

    archive = parts.archive
    try:
        return api.submit(
            parts.spec,
            archive.file if archive else None,
            archive.size if archive else 0,
            token_urlsafe(24),
            listener=parts.progress,
        )
    except KeyboardInterrupt:
        raise Detached(
            "interrupted before the server confirmed the job: `ciclient list` shows "
            "whether it is there"
        ) from None


def _shown(
    terminal: Terminal,
    api: "Api",
    job: "Job",
    start: "Params",
    *,
    raw: bool,
    established: bool = False,
) -> "Job":
    """Shows a job to its end."""
    from ciclient.follow import JobStream
    from ciclient.views import PlainView, watch

    stream = JobStream(api, job, start, established=established)
    if not terminal.live or raw:
        return watch(stream, PlainView(terminal, raw=raw))
    from ciclient.live import LiveView

    return watch(stream, LiveView(terminal, api.access, job))


def _concluded(terminal: Terminal, api: "Api", ended: "Job", *, raw: bool) -> int:
    """Says how a job ended that was shown, and returns the exit code."""
    from ciclient.report import exit_code, next_steps, verdict

    ended = _detailed(api, ended)
    now, server = datetime.now(UTC), api.access.server
    if not terminal.live or raw:
        terminal.say("\n".join([*next_steps(ended, server), verdict(ended, now)]))
        return exit_code(ended)
    from ciclient.live import closing

    terminal.out_line(closing(ended, server, now, terminal.size.columns))
    return exit_code(ended)


def _detailed(api: "Api", ended: "Job") -> "Job":
    """The job with its history; a list of jobs, and an older worker's stream, do not tell it."""
    if "history" in ended.raw:
        return ended
    with suppress(ClientError, KeyboardInterrupt):  # without it the verdict is as good
        return api.job(ended.id, patience=LAST_PATIENCE)
    return ended


def _waited(
    terminal: Terminal, api: "Api", job: "Job", *, from_beginning: bool, raw: bool
) -> "Job":
    from ciclient.follow import JobStream
    from ciclient.views import PlainView, QuietView, watch

    if job.ended and not from_beginning:
        return job
    view = PlainView(terminal, raw=raw) if from_beginning else QuietView(terminal)
    start: Params = {"from": 1} if from_beginning else {"now": 1}
    return watch(JobStream(api, job, start), view)


def _access(terminal: Terminal, server: str | None, token_file: Path | None) -> "Access":
    from ciclient.config import find_access

    access = find_access(server, token_file)
    for warning in access.warnings:
        terminal.say(f"warning: {warning}")
    return access


@contextmanager
def _connection(terminal: Terminal, server: str | None, token_file: Path | None) -> "Iterator[Api]":
    with _connected(terminal, _access(terminal, server, token_file)) as api:
        yield api


@contextmanager
def _connected(terminal: Terminal, access: "Access") -> "Iterator[Api]":
    with terminal.noting(f"asking {access.server}"):
        from ciclient.api import Api  # after the note: this import is a large part of the wait

        with Api(access) as api:
            yield api


def _remember(terminal: Terminal, api: "Api", job: "Job") -> None:
    from ciclient.state import remember

    try:
        remember(api.access.server, Path.cwd(), job.id)
    except OSError as error:
        terminal.say(f"warning: can't remember this job as the newest: {error}")


def _table(terminal: Terminal, jobs: "tuple[Job, ...]") -> str:
    now = datetime.now(UTC)
    if terminal.live:
        from ciclient.live import job_table

        return job_table(jobs, now, terminal.size.columns)
    from ciclient.report import HEADINGS, aligned, row

    width = terminal.size.columns if terminal.on_tty else None
    return "\n".join(aligned([HEADINGS, *(row(job, now) for job in jobs)], width))


def _login_token(token_file: Path | None) -> str:
    from ciclient.config import check_token, read_token

    if token_file is not None:
        return read_token(token_file)
    if not sys.stdin.isatty():
        raise Usage("there is no terminal to ask for the token: give --token-file (- is stdin)")
    from getpass import getpass

    return check_token(getpass("token: "), "the terminal")


def _report(error: ClientError) -> int:
    Terminal().say(f"{error}" if isinstance(error, Detached) else f"error: {error}")
    return error.exit_code
