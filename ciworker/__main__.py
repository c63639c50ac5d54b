"""The `ciworker` command."""

from ciworker import app, cli


def main() -> None:
    cli.run(serve=app.serve)


if __name__ == "__main__":
    main()
