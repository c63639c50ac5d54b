"""The `ciworker` command."""

import os

from ciworker import app, cli


def main() -> None:
    os.umask(0o077)  # what jobs print and are given is nobody else's on this machine
    cli.run(serve=app.serve)


if __name__ == "__main__":
    main()
