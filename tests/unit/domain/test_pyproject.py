"""What a project's files say: that hostile ones are read as fast as any."""

from collections.abc import Mapping, Sequence

import pytest

from ciworker.domain.pyproject import ProjectFiles


def project(extras: Mapping[str, Sequence[str]]) -> ProjectFiles:
    """A project named demo with these extras."""
    tables = "".join(f"{name} = {list(words)!r}\n" for name, words in extras.items())
    text = f'[project]\nname = "demo"\n[project.optional-dependencies]\n{tables}'
    return ProjectFiles({"pyproject.toml": text.encode()}, frozenset({"pyproject.toml"}))


def test_an_extra_brings_the_words_of_those_that_it_names_in_its_place() -> None:
    tree = project(
        {
            "test": ["pytest", "Demo[lint, http] ; python_version > '3'", "six"],
            "lint": ["ruff", "demo[types]"],
            "types": ["mypy"],
            "http": ["demo", "aiohttp"],
            "other": ["no"],
        }
    )
    assert [*tree.extra_words("test")] == ["pytest", "ruff", "mypy", "aiohttp", "six"]
    assert [*tree.extra_words("http", "types", "gone")] == ["aiohttp", "mypy"]


def test_extras_that_name_each_other_bring_their_words_once() -> None:
    names = [f"e{n}" for n in range(5)]
    tree = project({name: [f"demo[{','.join(names)}]", f"word-{name}"] for name in names})
    assert sorted(tree.extra_words("e0")) == [f"word-{name}" for name in names]
    assert sorted(tree.extra_words(*names)) == [f"word-{name}" for name in names]


def test_extras_may_name_each_other_as_deep_as_they_like() -> None:
    chain = {f"e{n}": [f"demo[e{n + 1}]"] for n in range(5000)}
    assert [*project({**chain, "e5000": ["six"]}).extra_words("e0")] == ["six"]


@pytest.mark.parametrize(("length", "name"), [(200, "n" * 200), (201, None)])
def test_a_guessed_name_is_no_longer_than_names_are(length: int, name: str | None) -> None:
    script = f"setup(name='{'n' * length}')".encode()
    assert ProjectFiles({"setup.py": script}, frozenset()).name_for_versions == name
