"""What version a tree has whose repository stayed with the client: git's own words, as PEP 440.

Build backends that take versions from tags can be told one by a variable. It is the one that
setuptools_scm's default scheme gives, as far as `git describe` tells: the next version's
development release, with the commit as its local part.
"""

import re
from collections.abc import Mapping

NO_VERSION = "0"
"""What a backend is told that would fail for want of one."""

_DESCRIBED = re.compile(r"(?P<tag>.+)-(?P<distance>[0-9]+)-g(?P<node>[0-9a-f]{4,64})", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{4,64}", re.ASCII)
_SHORT = re.compile(r"[^\s]{1,250}")
_TAG = re.compile(r"(?:[\w-]+-)?(?P<version>v?[0-9][^+]*)(?:\+.*)?", re.ASCII | re.IGNORECASE)
_VERSION = re.compile(  # PEP 440, appendix B, less what _TAG takes off
    r"v?(?:(?P<epoch>[0-9]+)!)?(?P<release>[0-9]+(?:\.[0-9]+)*)"
    r"(?:[-_.]?(?P<pre>alpha|a|beta|b|preview|pre|c|rc)[-_.]?(?P<pre_n>[0-9]*))?"
    r"(?:-(?P<post_implied>[0-9]+)|(?P<post>[-_.]?(?:post|rev|r)[-_.]?(?P<post_n>[0-9]*)))?"
    r"(?P<dev>[-_.]?dev[-_.]?(?P<dev_n>[0-9]*))?",
    re.ASCII | re.IGNORECASE,
)
_PRE = {"alpha": "a", "beta": "b", "c": "rc", "pre": "rc", "preview": "rc"}
_NODE = 7  # characters of a commit, as git abbreviates
_DIRTY = "-dirty"
_NO_TAG = "0.1"  # what the next version is where there is none yet


def pretend_version(vcs: Mapping[str, object]) -> str | None:
    """The version of a tree, normalised; None where nothing is known of its repository.

    Args:
        vcs: as the client's git says: `commit`, and `describe`, which is what `git describe
            --tags --always --dirty` prints; anything else in them counts as not said.
    """
    commit, text = _word(vcs, "commit", _HEX), _word(vcs, "describe", _SHORT) or ""
    dirty = text.endswith(_DIRTY)
    text = text.removesuffix(_DIRTY)
    node = (commit or text)[:_NODE]
    if match := _DESCRIBED.fullmatch(text):
        return _development(match["tag"], int(match["distance"]), match["node"], dirty)
    if text and not (commit or "").startswith(text):
        tag = _normal(text)
        return tag if tag and not dirty else _development(text, 0, node, dirty)
    return _development("", 0, node, dirty) if _HEX.fullmatch(node) else None


def version_variables(version: str, project: str | None) -> Mapping[str, str]:
    """By what variables build backends are told a version.

    For setuptools_scm and hatch-vcs, pdm-backend, pbr, poetry-dynamic-versioning and
    uv-dynamic-versioning. All but `project_variables` reach every build of a process and its
    children, so they are for the project's own alone.
    """
    generic = (
        "SETUPTOOLS_SCM_PRETEND_VERSION",
        "PDM_BUILD_SCM_VERSION",
        "PBR_VERSION",
        "POETRY_DYNAMIC_VERSIONING_BYPASS",
        "UV_DYNAMIC_VERSIONING_BYPASS",
    )
    return {**dict.fromkeys(generic, version), **project_variables(version, project)}


def project_variables(version: str, project: str | None) -> Mapping[str, str]:
    """The variables that tell the version of this distribution and of no other."""
    if project is None:
        return {}
    name = re.sub(r"[^A-Z0-9]+", "_", project.upper())
    return {f"SETUPTOOLS_SCM_PRETEND_VERSION_FOR_{name}": version}


def _word(vcs: Mapping[str, object], key: str, pattern: re.Pattern[str]) -> str | None:
    value = vcs.get(key)
    return value if isinstance(value, str) and pattern.fullmatch(value) else None


def _development(tag: str, distance: int, node: str, dirty: bool) -> str:
    """The development release after a tag; git does not say on what day a tree became dirty."""
    guessed = _next(_normal(tag) or "") or _NO_TAG
    local = [f"g{node}"] if _HEX.fullmatch(node) else []
    if dirty:
        local.append("dirty")
    suffix = f"+{'.'.join(local)}" if local else ""
    return f"{guessed}.dev{distance}{suffix}"


def _next(version: str) -> str | None:
    """Without its development part, or with its last number raised."""
    before, dev, number = version.partition(".dev")
    if dev and int(number) == 0:
        return before
    match = re.fullmatch(r"(.*?)([0-9]+)", before, re.ASCII)
    return f"{match[1]}{int(match[2]) + 1}" if match else None


def _normal(tag: str) -> str | None:
    """The public version that a tag names, in PEP 440's normal form, if it names one."""
    named = _TAG.fullmatch(tag)
    match = _VERSION.fullmatch(named["version"]) if named else None
    if match is None:
        return None
    text = f"{int(match['epoch'])}!" if int(match["epoch"] or 0) else ""
    text += ".".join(str(int(number)) for number in match["release"].split("."))
    if pre := match["pre"]:
        text += f"{_PRE.get(pre.lower(), pre.lower())}{int(match['pre_n'] or 0)}"
    if match["post_implied"] or match["post"]:
        text += f".post{int(match['post_implied'] or match['post_n'] or 0)}"
    return text + (f".dev{int(match['dev_n'] or 0)}" if match["dev"] else "")
