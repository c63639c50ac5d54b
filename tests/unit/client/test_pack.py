"""What is packed, with real git and real files."""

import errno
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ciclient.errors import Usage
from ciclient.git import describe
from ciclient.pack import Count, default_project, largest, packed, ready_file, summary
from ciclient.tree import Tree, look_at
from tests.unit.client.conftest import git


def names(root: Path) -> list[str]:
    return [entry.name for entry in look_at(root).entries]


def members(tree: Tree) -> dict[str, tarfile.TarInfo]:
    with packed(tree) as archive, opened(archive.file.read()) as tar:
        return {member.name: member for member in tar}


def contents(tree: Tree) -> dict[str, bytes]:
    with packed(tree) as archive, opened(archive.file.read()) as tar:
        found = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        return {name: file.read() for name, file in found.items() if file is not None}


def opened(data: bytes) -> tarfile.TarFile:
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return tarfile.open(fileobj=io.BytesIO(plain), errors="surrogateescape")


def write(root: Path, *files: str, text: str = "x") -> None:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    root = tmp_path / "repo"
    root.mkdir()
    git(root, "init", "-q")
    write(root, "kept.py", "gone.py", "sub/deep.py")
    write(root, ".gitignore", text="*.log\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


def test_git_s_list_is_packed_as_it_is_on_disk(repo: Path) -> None:
    (repo / "gone.py").unlink()
    write(repo, "kept.py", text="changed")
    write(repo, "new.py", "noise.log", "venv/lib.py")
    tree = look_at(repo)
    assert [e.name for e in tree.entries] == [
        ".gitignore", "kept.py", "new.py", "sub/deep.py", "venv/lib.py",
    ]  # fmt: skip
    assert contents(tree)["kept.py"] == b"changed"


def test_a_subfolder_of_a_repository_is_packed_alone(repo: Path) -> None:
    write(repo, "sub/new.py", "sub/noise.log")
    assert names(repo / "sub") == ["deep.py", "new.py"]


def test_ciignore_holds_inside_git_too(repo: Path) -> None:
    write(repo, "data/huge.bin", "sub/.ciignore")
    write(repo, ".ciignore", text="/data/\n")
    write(repo, "sub/.ciignore", text="deep.py\n")
    assert names(repo) == [".ciignore", ".gitignore", "gone.py", "kept.py", "sub/.ciignore"]


def test_submodules_and_nested_repositories_bring_their_own_files(
    repo: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    write(other, "lib.py")
    git(other, "add", ".")
    git(other, "commit", "-qm", "other")
    git(repo, "submodule", "-q", "add", str(other), "module")
    write(repo, "module/dirty.py")
    git(tmp_path, "clone", "-q", str(other), str(repo / "nested"))
    assert {"module/lib.py", "module/dirty.py", "nested/lib.py"} <= set(names(repo))

    git(repo, "submodule", "-q", "deinit", "-f", "module")
    tree = look_at(repo)
    assert not any(entry.name.startswith("module") for entry in tree.entries)
    assert tree.warnings == ("left out, a submodule that is not checked out: module",)


def test_a_file_in_a_merge_conflict_is_packed_once(repo: Path) -> None:
    git(repo, "checkout", "-qb", "side")
    write(repo, "kept.py", text="theirs")
    git(repo, "commit", "-qam", "theirs")
    git(repo, "checkout", "-q", "main")
    write(repo, "kept.py", text="ours")
    git(repo, "commit", "-qam", "ours")
    with pytest.raises(Exception, match="merge"):
        git(repo, "merge", "side")
    assert names(repo).count("kept.py") == 1


def test_a_tracked_file_below_what_is_a_link_now_is_gone(repo: Path, tmp_path: Path) -> None:
    write(tmp_path, "outside/deep.py", text="secret")
    (repo / "sub" / "deep.py").unlink()
    (repo / "sub").rmdir()
    (repo / "sub").symlink_to(tmp_path / "outside")
    tree = look_at(repo)
    assert "sub/deep.py" not in [entry.name for entry in tree.entries]
    assert "sub" in tree.warnings[0]


def test_a_folder_that_an_outer_repository_ignores_is_packed_by_itself(repo: Path) -> None:
    write(repo, ".gitignore", text="build/\n")
    write(repo, "build/a.py", "build/__pycache__/a.pyc")
    assert names(repo / "build") == ["a.py"]


def test_a_hook_s_git_variables_do_not_mislead(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert "kept.py" in names(repo)


def test_without_git_the_ignore_files_and_usual_caches_decide(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(repo, "noise.log", "__pycache__/kept.pyc", "node_modules/x.js")
    monkeypatch.setenv("PATH", "/nonexistent")
    tree = look_at(repo)
    assert [entry.name for entry in tree.entries] == [
        ".gitignore", "gone.py", "kept.py", "sub/deep.py",
    ]  # fmt: skip
    assert "git can't be run" in tree.warnings[0]
    assert describe(repo) is None


def test_outside_git_deeper_ignore_files_win(tmp_path: Path) -> None:
    write(tmp_path, ".gitignore", text="*.txt\n/only_here\nbuild/\n")
    write(tmp_path, "a/.gitignore", text="!keep.txt\n")
    write(tmp_path, "a/.ciignore", text="secret.py\n")
    write(tmp_path, "x.txt", "a/keep.txt", "a/drop.txt", "a/secret.py", "a/only_here", "only_here")
    write(tmp_path, "a/build/keep.txt", "b/secret.py")
    assert names(tmp_path) == [
        ".gitignore", "a/.ciignore", "a/.gitignore", "a/keep.txt", "a/only_here", "b/secret.py",
    ]  # fmt: skip


def test_outside_git_usual_caches_and_virtual_environments_stay(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "__pycache__/a.cpython-311.pyc", ".tox/x", "b.pyc", ".DS_Store")
    write(tmp_path, ".venv/pyvenv.cfg", ".venv/lib/x.py", "venv/mine.py", ".hg/store/x")
    assert names(tmp_path) == ["a.py", "venv/mine.py"]


def test_an_empty_folder_outside_git_is_kept(tmp_path: Path) -> None:
    write(tmp_path, "a.py")
    (tmp_path / "spool").mkdir()
    assert members(look_at(tmp_path))["spool"].isdir()


def test_modes_links_owners_and_order(tmp_path: Path) -> None:
    write(tmp_path, "z.py", "run.sh", "a/b.py")
    (tmp_path / "run.sh").chmod(0o4750)
    (tmp_path / "a" / "link").symlink_to("../z.py")
    (tmp_path / "folder").symlink_to("a")
    found = members(look_at(tmp_path))
    assert list(found) == ["a/b.py", "a/link", "folder", "run.sh", "z.py"]
    assert [found["run.sh"].mode, found["z.py"].mode] == [0o755, 0o644]
    assert [found["a/link"].linkname, found["folder"].linkname] == ["../z.py", "a"]
    assert {(m.uid, m.gid, m.uname, m.gname) for m in found.values()} == {(0, 0, "", "")}


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "a/../../outside", ".."])
def test_a_link_that_leaves_the_tree_is_left_out_and_named(tmp_path: Path, target: str) -> None:
    write(tmp_path, "a.py")
    (tmp_path / "link").symlink_to(target)
    tree = look_at(tmp_path)
    assert [entry.name for entry in tree.entries] == ["a.py"]
    assert tree.warnings == (f"left out, a link that leaves the tree (to {target}): link",)


def test_a_fifo_is_left_out_and_named(tmp_path: Path) -> None:
    write(tmp_path, "a.py")
    os.mkfifo(tmp_path / "pipe")
    assert look_at(tmp_path).warnings == ("left out, neither file nor link: pipe",)


def test_an_empty_folder_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="there is nothing to pack"):
        look_at(tmp_path)


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.py")

    def forbidden() -> None:  # root may read everything, so the answer is given here
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "a.py"))

    at_each_open(monkeypatch, forbidden)
    with pytest.raises(Usage, match=r"a\.py: Permission denied"), packed(look_at(tmp_path)):
        pass


def test_names_that_are_not_utf_8_keep_their_bytes(repo: Path) -> None:
    raw = b"caf\xe9.py"
    (Path(os.fsdecode(os.fsencode(repo) + b"/" + raw))).write_text("x")
    assert os.fsencode(next(n for n in members(look_at(repo)) if n.startswith("caf"))) == raw


def test_a_file_that_grows_while_it_is_packed_is_cut_at_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.txt", text="1234")
    at_each_open(monkeypatch, lambda: append(tmp_path / "a.txt"))
    assert contents(look_at(tmp_path)) == {"a.txt": b"1234+"}


def test_a_file_that_vanishes_while_it_is_packed_is_looked_for_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.txt", "b.txt")
    tree = look_at(tmp_path)
    (tmp_path / "b.txt").unlink()
    assert list(members(tree)) == ["a.txt"]


def test_a_tree_that_is_packed_anew_is_counted_anew(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.txt", "c.txt", text="1234")
    tree = look_at(tmp_path)
    (tmp_path / "c.txt").unlink()
    write(tmp_path, "a.txt", text="12345")
    told: list[tuple[Count, Count]] = []
    with packed(tree, lambda done, whole: told.append((done, whole))):
        pass
    assert told[0][1] == Count(3, 12)
    assert told[-1] == (Count(2, 9), Count(2, 9))


def test_a_file_that_becomes_a_link_while_it_is_packed_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path, "tree/a.txt", "tree/b.txt", "secret")
    tree = look_at(tmp_path / "tree")
    (tmp_path / "tree/b.txt").unlink()
    (tmp_path / "tree/b.txt").symlink_to(tmp_path / "secret")
    assert list(members(tree)) == ["a.txt"]


def test_a_file_that_shrinks_each_time_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.txt", text="1" * 50_000)
    file = tmp_path / "a.txt"
    inode = file.stat().st_ino
    real = os.fstat

    def before_it_shrinks(handle: int) -> os.stat_result:
        status = real(handle)
        if status.st_ino == inode:
            os.truncate(file, status.st_size - 5000)
        return status

    monkeypatch.setattr(os, "fstat", before_it_shrinks)
    with pytest.raises(Usage, match=r"a\.txt changed each time"), packed(look_at(tmp_path)):
        pass


def at_each_open(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    real = os.open

    def opening(*arguments: Any, **keywords: Any) -> int:
        act()
        return real(*arguments, **keywords)

    monkeypatch.setattr(os, "open", opening)


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("+")


TREE = st.dictionaries(
    st.lists(st.sampled_from(["a", "b", "é", "x y", "-n", "[z]", "*"]), min_size=1, max_size=4)
    .map(lambda parts: "/".join(f"{part}{depth}" for depth, part in enumerate(parts)))
    .map(lambda name: f"{name}.txt"),
    st.binary(max_size=2000),
    min_size=1,
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(TREE, st.booleans())
def test_every_file_arrives_with_its_bytes_in_git_and_outside(
    files: dict[str, bytes], in_git: bool
) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if in_git:
            git(root, "init", "-q")
        assert contents(look_at(root)) == files


def test_the_summary_counts_files_bytes_and_changes(repo: Path) -> None:
    write(repo, "kept.py", "new/one.py", "new/two.py")
    vcs = describe(repo)
    assert vcs is not None
    assert (vcs.branch, vcs.changes) == ("main", 2)
    assert vcs.as_spec() == {
        "commit": git(repo, "rev-parse", "HEAD"),
        "branch": "main",
        "describe": git(repo, "describe", "--always"),
        "dirty": True,
    }
    tree = look_at(repo)
    assert summary(tree, vcs.changes) == "6 files, 11 B, with uncommitted changes in 2"
    assert summary(tree, 0) == "6 files, 11 B"
    assert largest(tree) is None


def test_a_repository_without_a_commit_tells_what_it_knows(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "trunk")
    vcs = describe(tmp_path)
    assert vcs is not None
    assert vcs.as_spec() == {"branch": "trunk", "dirty": False}


def test_more_than_50_mb_names_the_largest_files(tmp_path: Path) -> None:
    for index in range(7):
        with (tmp_path / f"{index}.bin").open("wb") as file:
            file.truncate((index + 1) * 5 * 1024 * 1024)
    text = largest(look_at(tmp_path))
    assert text is not None
    assert [line.split()[-1] for line in text.splitlines()[1:]] == [
        "6.bin", "5.bin", "4.bin", "3.bin", "2.bin",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "project"),
    [
        ({}, "tea"),
        ({"pyproject.toml": '[project]\nname = "x"'}, None),
        ({"pyproject.toml": "[project]\nversion = '1'"}, "tea"),
        ({"pyproject.toml": '[tool.ciworker]\nproject = "x"'}, None),
        ({".ciworker.toml": 'project = "x"'}, None),
        ({".ciworker.toml": 'run = "true"'}, "tea"),
        ({".ciworker.toml": "", "pyproject.toml": '[tool.ciworker]\nproject = "x"'}, "tea"),
        ({"pyproject.toml": "this is [ no toml"}, "tea"),
        ({"pyproject.toml": "tool = 3"}, "tea"),
    ],
)
def test_the_folder_s_name_is_sent_where_no_file_names_the_project(
    here: Path, files: dict[str, str], project: str | None
) -> None:
    for name, text in files.items():
        (here / name).write_text(text)
    assert default_project(here) == project


def test_ready_archives_are_sent_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, "a.py")
    made = {}
    made["tar"], made["tar.gz"] = tmp_path / "x.tar", tmp_path / "x.tar.gz"
    with tarfile.open(made["tar"], "w") as plain, tarfile.open(made["tar.gz"], "w:gz") as gz:
        for tar in (plain, gz):
            tar.add(tmp_path / "a.py", "a.py")
    made["tar.zst"] = tmp_path / "x.tar.zst"
    made["tar.zst"].write_bytes(zstandard.compress(made["tar"].read_bytes()))
    made["zip"] = tmp_path / "x.zip"
    with zipfile.ZipFile(made["zip"], "w") as archive:
        archive.write(tmp_path / "a.py", "a.py")
    for path in made.values():
        with ready_file(path) as ready:
            assert ready.size == path.stat().st_size
            assert ready.file.read() == path.read_bytes()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"hello, I am text", "is no archive"),
        (b"\0" * 10240, "is no archive"),
        (b"\xfd7zXZ\0 and more", "compressed in a way"),
        (b"BZh91AY", "compressed in a way"),
    ],
)
def test_a_file_that_is_no_archive_is_refused(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(Usage, match=sentence), ready_file(path):
        pass
