"""constant_time.py FOLDER...: finds `==`, `!=` and `in` on secrets: their time tells of those.

A name is a secret's by a word in it, such as `digest`; the `secrets` of a spec are names.
`hmac.compare_digest` is what to use.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_SECRET = re.compile(r"(^|_)(secret|digest|signature|bearer|cookie|credential)s?($|_)")
_OF_NAMES = {"secrets", "setup_secrets"}
_LEAKS = (ast.Eq, ast.NotEq, ast.In, ast.NotIn)


def leaks(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each comparison that stops at the first byte that differs."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and _leaks(node):
            yield node.lineno, ast.unparse(node)


def _leaks(node: ast.Compare) -> bool:
    sides = (node.left, *node.comparators)
    return any(
        isinstance(operator, _LEAKS) and (_is_secret(left) or _is_secret(right))
        for operator, left, right in zip(node.ops, sides, sides[1:], strict=False)
    )


def _is_secret(side: ast.expr) -> bool:
    """Whether a name in it is a secret's; its length is none."""
    if isinstance(side, ast.Call) and isinstance(side.func, ast.Name) and side.func.id == "len":
        return False
    names = (
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(side)
        if isinstance(node, ast.Name | ast.Attribute)
    )
    return any(_SECRET.search(name.lower()) for name in names if name not in _OF_NAMES)


def main() -> int:
    sources = {folder: sorted(Path(folder).rglob("*.py")) for folder in sys.argv[1:]}
    if empty := [folder for folder, files in sources.items() if not files]:
        print(f"no .py in {', '.join(empty)}: name folders of sources", file=sys.stderr)
        return 2
    found = 0
    for file in (file for files in sources.values() for file in files):
        for line, text in leaks(file.read_text()):
            print(f"{file}:{line}: {text}: compare secrets with hmac.compare_digest")
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
