"""What a setup may read: found in a stored tree, digested, and written as a tree of its own."""

import asyncio
import io
import random
import resource
import subprocess
import tarfile
import tracemalloc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import pytest

from ciworker.domain.job import Spec
from ciworker.domain.jobfile import Wanted
from ciworker.domain.patterns import parse_pattern
from ciworker.errors import Invalid
from ciworker.source.archive import Limits, SpoolCorrupt, Workspace
from ciworker.source.inputs import (
    MAX_INPUTS,
    MAX_NAMES,
    MAX_PASSES,
    with_setup,
    write_inputs,
)
from ciworker.source.intake import Intake
from ciworker.source.spool import END_OF_ARCHIVE, clean_tar

LIMITS = Limits(max_packed=128 << 20, max_unpacked=128 << 20, max_members=5000)
SPEC = Spec("image", "run", 60.0, 1 << 30, 1.0, False, "project")
SETUP = ("install",)
SAY = "say setup and setup-inputs in the job file, the latter with no more files than it needs"


@dataclass(frozen=True)
class Symlink:
    target: str


@dataclass(frozen=True)
class Hardlink:
    target: str


Tree = Mapping[str, bytes | Symlink | Hardlink]


@dataclass(frozen=True)
class Stored:
    """A tree that was taken in."""

    workspace: Workspace
    spool: Path

    def setup(
        self, inputs: Sequence[str] | None = None, setup: Sequence[str] | None = SETUP
    ) -> Spec:
        patterns = None if inputs is None else [parse_pattern(entry) for entry in inputs]
        return with_setup(Wanted(SPEC, setup, patterns), self.workspace, self.spool)

    def inputs(self, inputs: Sequence[str] | None = None) -> Mapping[str, str]:
        return self.setup(inputs).setup_inputs

    def refusal(self, inputs: Sequence[str] | None = None) -> str:
        with pytest.raises(Invalid) as caught:
            self.setup(inputs)
        return str(caught.value)


def store(
    folder: Path, tree: Tree, name: str = "spool", executable: Collection[str] = ()
) -> Stored:
    """Take a tree in, as an upload is."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path, node in tree.items():
            info = tarfile.TarInfo(path)
            info.mode = 0o755 if path in executable else 0o644
            if isinstance(node, bytes):
                info.size = len(node)
                tar.addfile(info, io.BytesIO(node))
                continue
            info.type = tarfile.SYMTYPE if isinstance(node, Symlink) else tarfile.LNKTYPE
            info.linkname = node.target
            tar.addfile(info)

    async def upload() -> Workspace:
        intake = Intake(folder / name, LIMITS, now=2e9)
        await intake.feed(packed.getvalue())
        return await intake.finish()

    return Stored(asyncio.run(upload()), folder / name)


def digests(tree: Tree, *names: str) -> dict[str, str]:
    return {name: digest(tree[name]) for name in names}


def digest(node: bytes | Symlink | Hardlink) -> str:
    assert isinstance(node, bytes)
    return sha256(node).hexdigest()


# --- by default ------------------------------------------------------------------------------


ORDINARY = {
    "requirements.txt": b"six\n",
    "requirements-dev.txt": b"pytest\n",
    "constraints.txt": b"six<2\n",
    "pyproject.toml": b"[tool.x]\n",
    "setup.cfg": b"",
    "uv.lock": b"version = 1\n",
    "pylock.toml": b"lock-version = '1.0'\n",
    "poetry.lock": b"# none\n",
}
OTHERS = {
    "README.md": b"read me",
    "my-requirements.txt": b"no",
    ".ciworker.toml": b"",
    "src/requirements.txt": b"not at the root",
    "requirements.txt.orig": b"no",
}


def test_a_setup_reads_what_usually_says_of_what_a_tree_depends_on(tmp_path: Path) -> None:
    tree = {**OTHERS, **ORDINARY}
    spec = store(tmp_path, tree).setup()
    assert spec == replace(SPEC, setup=SETUP, setup_inputs=digests(tree, *ORDINARY))


def test_a_tree_without_any_of_it_has_no_inputs(tmp_path: Path) -> None:
    assert store(tmp_path, OTHERS).inputs() == {}


@pytest.mark.parametrize("inputs", [None, ["missing"]])
def test_no_commands_are_no_setup_whatever_they_could_read(
    tmp_path: Path, inputs: Sequence[str] | None
) -> None:
    assert store(tmp_path, ORDINARY).setup(inputs, setup=()) == SPEC


def test_where_nobody_says_anything_the_files_do(tmp_path: Path) -> None:
    tree = {"requirements.txt": b"-r deps/test.txt\nsix\n", "deps/test.txt": b"pytest\n"}
    spec = store(tmp_path, tree).setup(setup=None)
    assert spec.setup
    assert isinstance(spec.setup, tuple)
    assert spec.setup_inputs == digests(tree, *tree)
    assert replace(spec, setup=(), setup_inputs={}, backend=None) == SPEC


def test_where_nobody_and_nothing_says_anything_there_is_no_setup(tmp_path: Path) -> None:
    assert store(tmp_path, {"test_a.py": b"", "constraints.txt": b"x"}).setup(setup=None) == SPEC


def test_what_requirements_include_is_read_too_wherever_it_lies(tmp_path: Path) -> None:
    tree = {
        "b.in": b"",
        "requirements.txt": b"-r deps/test.txt\n-r gone.txt\n-c gone/too.txt\n",
        "deps/test.txt": b"-c ../b.in\n-r more/deep.txt\n-r ../requirements.txt\n",
        "deps/more/deep.txt": b"six\n",
        "deps/unused.txt": b"",
    }
    read = set(tree) - {"deps/unused.txt"}
    assert store(tmp_path, tree).inputs() == digests(tree, *sorted(read))


def test_any_number_of_includes_at_the_root_take_no_pass(tmp_path: Path) -> None:
    tree = {f"requirements{n}.txt": b"-r requirements%d.txt\n" % (n + 1) for n in range(50)}
    stored = store(tmp_path, tree)
    stored.spool.unlink()
    assert stored.inputs() == digests(tree, *tree)


def test_includes_without_an_end_are_refused(tmp_path: Path) -> None:
    tree = {f"{n}/a.txt": b"-r ../%d/a.txt\n" % (n + 1) for n in range(MAX_PASSES)}
    root = {"requirements.txt": b"-r 0/a.txt\n"}
    stored = store(tmp_path, {**root, **tree})
    assert len(stored.inputs()) == 1 + MAX_PASSES

    tree[f"{MAX_PASSES - 1}/a.txt"] = f"-r ../{MAX_PASSES}/a.txt\n".encode()
    tree[f"{MAX_PASSES}/a.txt"] = b""
    refused = store(tmp_path, {**root, **tree}, "deeper").refusal()
    assert refused.endswith(f"more than 8 times: {SAY}")


def test_large_and_many_files_are_digested_all_the_same(tmp_path: Path) -> None:
    """Their contents are not held: nobody looks into them."""
    large = {"uv.lock": random.Random(1).randbytes(3_000_000)}
    tree = large | {f"requirements{n:03}.txt": b"%d" % n for n in range(100)}
    stored = store(tmp_path, {**tree, "pyproject.toml": b""})
    assert len(stored.workspace.contents) == 64 + 1
    assert "uv.lock" not in stored.workspace.contents
    assert stored.inputs() == digests({**tree, "pyproject.toml": b""}, *tree, "pyproject.toml")


def test_more_inputs_than_a_spec_can_hold_are_refused(tmp_path: Path) -> None:
    tree: dict[str, bytes] = {f"requirements{n}.txt": b"" for n in range(MAX_INPUTS)}
    assert len(store(tmp_path, tree).inputs()) == MAX_INPUTS
    tree["requirements.txt"] = b""
    sentence = f"the setup would read over 1,000 files: {SAY}"
    stored = store(tmp_path, tree, "more")
    assert (stored.refusal(), stored.refusal(["*"])) == (sentence, sentence)


def test_longer_names_than_a_spec_can_hold_are_refused(tmp_path: Path) -> None:
    fits = MAX_NAMES // MAX_INPUTS
    names = [f"{n:03}/{'é' * 120}/" for n in range(MAX_INPUTS)]
    tree = {name + "f" * (fits - len(name.encode())): b"" for name in names}
    assert len(store(tmp_path, tree).inputs(["**"])) == MAX_INPUTS

    longer = {f"{name}f": b"" for name in tree}
    assert store(tmp_path, longer, "longer").refusal(["**"]) == (
        f"what the setup would read has names of over 256.0 KiB in all: {SAY}"
    )


def test_what_symlinks_lead_to_counts_as_names_do(tmp_path: Path) -> None:
    target = "./" * 2000 + "a"
    fit = MAX_NAMES // (len("l00") + len(target))
    links: Tree = {f"l{n:02}": Symlink(target) for n in range(fit + 1)}
    stored = store(tmp_path, {"a": b"", **links})
    assert len(stored.inputs(["a", *sorted(links)[:fit]])) == 1 + fit
    assert "names of over 256.0 KiB" in stored.refusal(["*"])


@pytest.mark.parametrize(
    ("words", "bound"),
    [
        ([f"package-{n}" for n in range(3000)], "32768 bytes and hold no NUL"),
        (["'" * 6100], "102400 bytes when a shell quotes it"),
    ],
)
def test_a_default_setup_is_bounded_as_a_named_one_is(
    tmp_path: Path, words: list[str], bound: str
) -> None:
    requires = "".join(f"\n    {word}" for word in words)
    cfg = f"[metadata]\nname = demo\n[options]\ninstall_requires = {requires}\n"
    stored = store(tmp_path, {"setup.cfg": cfg.encode()})
    with pytest.raises(Invalid) as caught:
        stored.setup(setup=None)
    assert str(caught.value) == (
        f"the setup that follows from the tree's files has to be shorter than {bound}: {SAY}"
    )
    assert stored.inputs() == digests({"setup.cfg": cfg.encode()}, "setup.cfg")


def test_no_default_setup_holds_what_no_shell_takes(tmp_path: Path) -> None:
    pyproject = b'[build-system]\nrequires = ["a\\u0000b"]\n'
    with pytest.raises(Invalid, match="hold no NUL: say setup"):
        store(tmp_path, {"pyproject.toml": pyproject}).setup(setup=None)


@pytest.mark.parametrize("data", [b"[[", b"[a\n\xff", b"=", b"[metadata]\na", b"\0"])
def test_commands_that_were_named_may_make_what_they_like_of_broken_files(
    tmp_path: Path, data: bytes
) -> None:
    tree = {"requirements.txt": data, "pyproject.toml": data, "setup.cfg": data, "uv.lock": data}
    assert store(tmp_path, tree).inputs() == digests(tree, *tree)


def test_a_name_that_is_no_text_is_no_default_input(tmp_path: Path) -> None:
    tree = {"requirements\udcff.txt": b"x", "requirements.txt": b"y"}
    assert store(tmp_path, tree).inputs() == digests(tree, "requirements.txt")


# --- as setup-inputs names them ------------------------------------------------------------------


NAMED = {
    "a.txt": b"a",
    "b.lock": b"b",
    "requirements.txt": b"-r a.txt",
    "deps/one.txt": b"1",
    "deps/two.lock": b"2",
    "deps/more/three.txt": b"3",
    "tools/build.sh": b"#!",
}


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        ([], []),
        (["requirements.txt"], ["requirements.txt"]),
        (["a.txt"], ["a.txt"]),
        (["deps"], ["deps/more/three.txt", "deps/one.txt", "deps/two.lock"]),
        (["./deps//more/"], ["deps/more/three.txt"]),
        (["*.txt"], ["a.txt", "requirements.txt"]),
        (["*/*.txt"], ["deps/one.txt"]),
        (["deps/**/*.txt"], ["deps/more/three.txt", "deps/one.txt"]),
        (["**/*.lock", "a.txt", "?.txt"], ["a.txt", "b.lock", "deps/two.lock"]),
        (["."], sorted(NAMED)),
        (["**"], sorted(NAMED)),
    ],
)
def test_inputs_are_what_is_named_and_nothing_else(
    tmp_path: Path, entries: list[str], names: list[str]
) -> None:
    assert store(tmp_path, NAMED).inputs(entries) == digests(NAMED, *names)


@pytest.mark.parametrize("entry", ["c.txt", "deps/one.txt/x", "one.txt", "dep", "A.txt", "b.loc?x"])
def test_an_entry_that_stands_for_nothing_is_refused_by_its_name(
    tmp_path: Path, entry: str
) -> None:
    refused = store(tmp_path, NAMED).refusal(["a.txt", entry])
    glob = "?" in entry
    assert refused.startswith(
        f"setup-inputs holds {entry!r}, which no file of the tree matches: correct it"
        if glob
        else f"setup-inputs names {entry!r}, which is not in the tree: correct it"
    )


def test_a_folder_without_files_is_nothing_to_read(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a"))
        folder = tarfile.TarInfo("empty")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)

    async def upload() -> Workspace:
        intake = Intake(tmp_path / "spool", LIMITS, now=2e9)
        await intake.feed(packed.getvalue())
        return await intake.finish()

    stored = Stored(asyncio.run(upload()), tmp_path / "spool")
    assert "'empty', which is not in the tree" in stored.refusal(["empty"])


def test_names_of_files_at_the_root_that_were_digested_take_no_pass(tmp_path: Path) -> None:
    stored = store(tmp_path, ORDINARY)
    stored.spool.unlink()
    assert stored.inputs(["uv.lock", "setup.cfg"]) == digests(ORDINARY, "setup.cfg", "uv.lock")
    with pytest.raises(SpoolCorrupt, match="No such file"):
        stored.inputs(["uv.*"])


def test_a_name_that_is_no_text_cannot_be_an_input(tmp_path: Path) -> None:
    stored = store(tmp_path, {"deps/\udcff": b"", "a": b""})
    sentence = "the setup would read 'deps/\\udcff', of which a name is not UTF-8: rename it"
    assert stored.refusal(["deps"]) == sentence
    assert set(stored.inputs(["a"])) == {"a"}


# --- what is executable ----------------------------------------------------------------------


SCRIPTS: Tree = {"run.sh": b"#!", "deps/more.sh": b"#!", "again": Hardlink("run.sh")}


@pytest.mark.parametrize("script", ["run.sh", "deps/more.sh"])
def test_trees_that_differ_in_what_is_executable_differ_in_their_inputs(
    tmp_path: Path, script: str
) -> None:
    plain = store(tmp_path, SCRIPTS, "plain").inputs(["**"])
    executable = store(tmp_path, SCRIPTS, "executable", [script]).inputs(["**"])
    assert plain == dict.fromkeys(SCRIPTS, digest(b"#!"))
    changed = {script, "again"} if script == "run.sh" else {script}
    assert {name for name in SCRIPTS if plain[name] != executable[name]} == changed
    assert executable[script] == f"x {digest(b'#!')}"


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml", ".ciworker.toml"])
@pytest.mark.parametrize("pattern", ["name", "glob"])
def test_what_is_digested_while_it_arrives_is_executable_for_no_setup(
    tmp_path: Path, name: str, pattern: str
) -> None:
    """Else its mode, which is not digested, would tell on whose tree a setup is made from."""
    tree: Tree = {name: b"", "deps/also": Hardlink(name)}
    entries = [name, "deps"] if pattern == "name" else ["**"]
    one = store(tmp_path, tree, "one")
    other = store(tmp_path, tree, "other", [name])
    assert one.inputs(entries) == other.inputs(entries) == dict.fromkeys(tree, digest(b""))
    for stored in (one, other):
        write_inputs(stored.spool, tree, tmp_path / f"{stored.spool.name}-inputs")
    assert (tmp_path / "one-inputs").read_bytes() == (tmp_path / "other-inputs").read_bytes()


def test_a_file_below_that_is_named_like_a_default_input_is_like_any_other(tmp_path: Path) -> None:
    tree = {"requirements/run.txt": b"#!", "deps/requirements.txt": b"#!"}
    found = store(tmp_path, tree, executable=tree).inputs(["**"])
    assert found == dict.fromkeys(tree, f"x {digest(b'#!')}")


# --- links -----------------------------------------------------------------------------------


def test_a_symlink_counts_as_what_it_leads_to_and_never_as_a_file(tmp_path: Path) -> None:
    tree: Tree = {"a.txt": b"-> b.txt", "b.txt": b"b", "l": Symlink("./deps/../b.txt")}
    assert store(tmp_path, tree).inputs(["l", "b.txt", "a.txt"]) == {
        **digests(tree, "a.txt", "b.txt"),
        "l": "-> ./deps/../b.txt",
    }


@pytest.mark.parametrize(
    ("link", "target", "entries"),
    [
        ("deps/link", "../b/x", ["deps", "b"]),
        ("deps/link", "../b", ["deps", "b/x"]),
        ("link", "b", ["link", "b/x"]),
        ("link", ".", ["link", "b/x"]),
        ("link", "other", ["link", "other", "b"]),
    ],
)
def test_a_symlink_may_lead_to_an_input_and_to_a_folder_of_inputs(
    tmp_path: Path, link: str, target: str, entries: list[str]
) -> None:
    tree: Tree = {link: Symlink(target), "b/x": b"", "other": Symlink("b")}
    assert store(tmp_path, tree).inputs(entries)[link] == f"-> {target}"


@pytest.mark.parametrize(
    ("target", "led_to"),
    [("../b/x", "b/x"), ("../gone", "gone"), ("../b", "b"), ("../other", "other")],
)
def test_a_symlink_that_would_lead_to_nothing_is_refused_with_both_names(
    tmp_path: Path, target: str, led_to: str
) -> None:
    tree: Tree = {"deps/link": Symlink(target), "b/x": b"", "other": Symlink("b"), "c": b""}
    assert store(tmp_path, tree).refusal(["deps", "c"]) == (
        f"the setup reads 'deps/link', a symlink to {led_to!r}, which it does not read: "
        "say setup, and in setup-inputs both or neither"
    )


def test_a_default_input_that_is_a_symlink_brings_what_it_leads_to(tmp_path: Path) -> None:
    """What it includes lies beside the link, which is how installers see it."""
    tree: Tree = {
        "requirements.txt": Symlink("deps/first.txt"),
        "deps/first.txt": Symlink("second.txt"),
        "deps/second.txt": b"-r more.txt\n",
        "more.txt": b"six\n",
    }
    assert store(tmp_path, tree).inputs() == {
        "requirements.txt": "-> deps/first.txt",
        "deps/first.txt": "-> second.txt",
        **digests(tree, "deps/second.txt", "more.txt"),
    }


def test_symlinks_that_lead_to_each_other_end_somewhere(tmp_path: Path) -> None:
    tree: Tree = {
        "requirements.txt": Symlink("constraints.txt"),
        "constraints.txt": Symlink("requirements.txt"),
        "a": b"",
    }
    assert set(store(tmp_path, tree).inputs()) == {"requirements.txt", "constraints.txt"}


@pytest.mark.parametrize("inputs", [None, ["requirements.txt"]])
def test_a_hard_link_counts_as_the_file_that_it_is(
    tmp_path: Path, inputs: Sequence[str] | None
) -> None:
    tree: Tree = {
        "z/file": b"-r a.txt\n",
        "z/again": Hardlink("z/file"),
        "requirements.txt": Hardlink("z/again"),
    }
    assert store(tmp_path, tree).inputs(inputs) == {"requirements.txt": digest(tree["z/file"])}


# --- the tree of the inputs alone ------------------------------------------------------------


def unpacked(spool: Path, folder: Path) -> Path:
    """The tree, as the tar command makes it in a container."""
    folder.mkdir()
    stream = b"".join(clean_tar(spool)) + END_OF_ARCHIVE
    subprocess.run(["tar", "-xf", "-"], input=stream, cwd=folder, check=True, timeout=10)
    return folder / "src"


def files_below(root: Path) -> set[str]:
    found = (path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    return {str(path.relative_to(root)) for path in found}


def test_the_tree_holds_the_inputs_byte_for_byte_and_nothing_else(tmp_path: Path) -> None:
    long = "d" * 120 + "/" + "f" * 200
    large = random.Random(3).randbytes(700_001)
    tree: Tree = {**NAMED, long: large, "naïve/ü.txt": b"", "link": Symlink("deps"), "not": b"no"}
    stored = store(tmp_path, tree, executable=["tools/build.sh"])
    names = stored.inputs(["deps", "tools", "d*/**", "naïve", "link", "a.txt"])

    length = write_inputs(stored.spool, names, tmp_path / "inputs")

    assert length == sum(map(len, clean_tar(tmp_path / "inputs")))
    assert (tmp_path / "inputs").stat().st_mode & 0o777 == 0o600
    root = unpacked(tmp_path / "inputs", tmp_path / "tree")
    assert files_below(root) == set(names) >= {long, "link", "tools/build.sh"}
    for name in names.keys() - {"link"}:
        assert (root / name).read_bytes() == tree[name]
        assert (root / name).stat().st_mode & 0o777 == (0o755 if name.endswith(".sh") else 0o644)
        assert (root / name).stat().st_mtime == 946_684_800
    assert (root / "link").readlink() == Path("deps")


def test_hard_links_are_whole_whether_or_not_what_they_link_to_is_an_input(tmp_path: Path) -> None:
    tree: Tree = {
        "z/file": b"once",
        "z/again": Hardlink("z/file"),
        "b": Hardlink("z/again"),
        "a": Hardlink("z/file"),
        "y/file": b"kept",
        "y/again": Hardlink("y/file"),
    }
    stored = store(tmp_path, tree)
    names = stored.inputs(["a", "b", "y"])
    write_inputs(stored.spool, names, tmp_path / "inputs")
    root = unpacked(tmp_path / "inputs", tmp_path / "tree")
    read = {name: (root / name).read_bytes() for name in files_below(root)}
    assert read == {"a": b"once", "b": b"once", "y/file": b"kept", "y/again": b"kept"}
    assert {name: sha256(data).hexdigest() for name, data in read.items()} == names


def test_equal_inputs_of_different_trees_are_equal_byte_for_byte(tmp_path: Path) -> None:
    one = store(tmp_path, {"a": b"1", "deps/b": b"2", "c": b"3"}, "one")
    other = store(tmp_path, {"x": b"9", "a": b"1", "y": Symlink("x"), "deps/b": b"2"}, "other")
    for stored in (one, other):
        write_inputs(stored.spool, ["a", "deps/b"], tmp_path / f"{stored.spool.name}-inputs")
    assert (tmp_path / "one-inputs").read_bytes() == (tmp_path / "other-inputs").read_bytes()


def test_no_inputs_are_an_empty_tree(tmp_path: Path) -> None:
    stored = store(tmp_path, NAMED)
    assert write_inputs(stored.spool, [], tmp_path / "inputs") == 0
    assert list(clean_tar(tmp_path / "inputs")) == []


def test_an_input_that_the_tree_lacks_leaves_nothing(tmp_path: Path) -> None:
    stored = store(tmp_path, NAMED)
    with pytest.raises(SpoolCorrupt, match="the stored workspace spool lacks 'deps/gone'"):
        write_inputs(stored.spool, ["a.txt", "deps/gone"], tmp_path / "inputs")
    assert list(tmp_path.iterdir()) == [stored.spool]


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_a_damaged_tree_leaves_nothing(tmp_path: Path, cut: int) -> None:
    stored = store(tmp_path, {"a": random.Random(4).randbytes(300_000)})
    whole = stored.spool.read_bytes()
    stored.spool.write_bytes(whole[:cut] + whole[cut + 1 :])
    with pytest.raises(SpoolCorrupt, match="the stored workspace spool can't be read"):
        write_inputs(stored.spool, ["a"], tmp_path / "inputs")
    with pytest.raises(SpoolCorrupt, match="the stored workspace spool can't be read"):
        stored.inputs(["*"])
    assert list(tmp_path.iterdir()) == [stored.spool]


def test_a_tree_that_is_gone_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SpoolCorrupt, match="No such file"):
        write_inputs(tmp_path / "gone", ["a"], tmp_path / "inputs")
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_never_written_over(tmp_path: Path) -> None:
    stored = store(tmp_path, NAMED)
    (tmp_path / "inputs").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        write_inputs(stored.spool, ["a.txt"], tmp_path / "inputs")
    assert (tmp_path / "inputs").read_bytes() == b"precious"


def test_a_disk_that_takes_no_more_is_told_and_left_clean(tmp_path: Path) -> None:
    stored = store(tmp_path, {"a": random.Random(5).randbytes(3_000_000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_inputs(stored.spool, ["a"], tmp_path / "inputs")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [stored.spool]


def test_large_inputs_are_never_held(tmp_path: Path) -> None:
    tree = {f"deps/{n}": random.Random(n).randbytes(10_000_000) for n in range(3)}
    stored = store(tmp_path, tree)
    tracemalloc.start()
    try:
        names = stored.inputs(["deps"])
        write_inputs(stored.spool, names, tmp_path / "inputs")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert names == digests(tree, *tree)
    assert most < 3_000_000
