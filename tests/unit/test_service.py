"""`scripts/ciworker.service`: nothing that happens to the unit reaches a job's container."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ciworker.cli.commands import cli
from ciworker.settings import PREFIX, load
from ciworker.units import parse_duration

FILE = Path(__file__).parents[2] / "scripts" / "ciworker.service"
STOP = 3.0  # seconds within which the worker goes on TERM; see tests/chaos/test_stopping_faults.py
SECTIONS = {"Unit", "Service", "Install"}
TIES = {"Requires", "Requisite", "BindsTo", "PartOf", "Upholds", "StopPropagatedFrom"}

Unit = Mapping[str, Mapping[str, Sequence[str]]]


def parsed(text: str) -> Unit:
    """Values by section and directive; see systemd.syntax(7)."""
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in text.splitlines():
        if not line or line[0] in "#;":
            continue
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header[1]
            continue
        name, equals, value = line.partition("=")
        assert equals, f"{line!r} is no directive"
        assert section in SECTIONS, line
        found.setdefault(section, {}).setdefault(name, []).append(value)
    return found


@pytest.fixture(scope="module")
def unit() -> Unit:
    return parsed(FILE.read_text())


def one(unit: Unit, section: str, name: str) -> str:
    """The value of a directive that stands there once."""
    (value,) = unit[section][name]
    return value


def words(unit: Unit, section: str, name: str) -> list[str]:
    return " ".join(unit[section].get(name, [])).split()


def test_a_stop_or_restart_of_the_engine_does_not_stop_the_worker(unit: Unit) -> None:
    assert "docker.service" in words(unit, "Unit", "After")
    assert "docker.service" in words(unit, "Unit", "Wants")
    assert not TIES & set(unit["Unit"])


def test_a_stop_is_a_term_to_the_worker_alone_and_has_time(unit: Unit) -> None:
    service = unit["Service"]
    assert one(unit, "Service", "KillMode") == "mixed"
    assert one(unit, "Service", "KillSignal") == "SIGTERM"
    assert parse_duration(one(unit, "Service", "TimeoutStopSec")) > 2 * STOP
    assert not {"ExecStop", "ExecStopPost", "SendSIGHUP", "FinalKillSignal"} & set(service)
    assert service.get("SendSIGKILL", ["yes"]) == ["yes"]


def test_the_unit_s_group_can_hold_no_container(unit: Unit) -> None:
    """Docker puts one there only by `--cgroup-parent`, which needs a group that is delegated."""
    assert not {"Delegate", "Slice"} & set(unit["Service"])
    sandbox = (FILE.parents[1] / "ciworker" / "engine" / "sandbox.py").read_text()
    assert "CgroupParent" not in sandbox


def test_it_comes_back_after_a_crash_and_stays_away_after_a_drain(unit: Unit) -> None:
    assert one(unit, "Service", "Restart") == "on-failure"
    assert one(unit, "Service", "Type") == "exec"
    assert one(unit, "Unit", "StartLimitIntervalSec") == "0"
    assert parse_duration(one(unit, "Service", "RestartSec")) >= 1
    assert one(unit, "Install", "WantedBy") == "multi-user.target"


def steps() -> list[str]:
    """What the file has the operator type."""
    return re.findall(r"^#   (.*)$", FILE.read_text(), re.MULTILINE)


def test_its_data_folder_is_the_one_that_systemd_makes_and_lets_it_write(
    unit: Unit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, made = one(unit, "Unit", "AssertPathExists"), tmp_path / "worker.toml"
    (making,) = (step for step in steps() if step.endswith(f"> {config}"))
    subprocess.run(["sh", "-ec", making.replace(config, str(made))], check=True)
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    folder = Path("/var/lib") / one(unit, "Service", "StateDirectory")
    assert load(made).data_dir == folder
    assert "Environment" not in unit["Service"], "commands from a shell would not have it"
    assert one(unit, "Service", "StateDirectoryMode") == "0700"
    assert one(unit, "Service", "UMask") == "0077"
    assert one(unit, "Service", "ProtectSystem") == "strict"


def test_it_reaches_the_engine_s_socket_and_its_own_port(unit: Unit) -> None:
    service = unit["Service"]
    assert words(unit, "Service", "SupplementaryGroups") == ["docker"]
    assert one(unit, "Service", "User") not in {"root", "0"}
    families = set(words(unit, "Service", "RestrictAddressFamilies"))
    assert {"AF_UNIX", "AF_INET", "AF_INET6"} <= families
    cuts_off = {
        "PrivateNetwork", "IPAddressDeny", "InaccessiblePaths", "DynamicUser", "PrivateUsers",
        "RootDirectory", "RootImage", "TemporaryFileSystem", "MemoryDenyWriteExecute",
    }  # fmt: skip
    assert not cuts_off & set(service)
    assert service.get("ProtectProc", ["default"]) == ["default"], "it names who holds the database"


def test_it_gains_no_privileges(unit: Unit) -> None:
    for name in (
        "NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome", "RestrictNamespaces",
        "RestrictSUIDSGID", "ProtectKernelModules", "ProtectKernelTunables", "ProtectControlGroups",
    ):  # fmt: skip
        assert one(unit, "Service", name) == "true", name
    assert one(unit, "Service", "CapabilityBoundingSet") == ""
    assert words(unit, "Service", "SystemCallFilter") == ["@system-service"]


def test_as_root_it_installs_the_firewall_before_each_start_and_does_nothing_else(
    unit: Unit,
) -> None:
    program = one(unit, "Service", "ExecStart").split()[0]
    assert one(unit, "Service", "ExecStartPre") == f"+{program} firewall install"
    assert CliRunner().invoke(cli, ["firewall", "install", "--help"]).exit_code == 0
    assert not {"ExecStartPost", "ExecReload", "ExecCondition"} & set(unit["Service"])


def test_what_it_starts_is_a_command_that_there_is(unit: Unit) -> None:
    program, *arguments = one(unit, "Service", "ExecStart").split()
    assert (Path(program).name, Path(program).is_absolute()) == ("ciworker", True)
    config = one(unit, "Unit", "AssertPathExists")
    assert arguments == ["serve", "--config", config]
    commands = [step for step in steps() if program in step]
    assert commands
    for step in commands:
        user, command = step.split(" -- ")
        assert user == f"runuser -u {one(unit, 'Service', 'User')}"
        called = command.removeprefix(program).removesuffix(f" --config {config}").split()
        shown = CliRunner().invoke(cli, [*called, "--help"])
        assert (shown.exit_code, "--config" in shown.output) == (0, True), step


def test_systemd_finds_no_fault_in_it(unit: Unit, tmp_path: Path) -> None:
    assert shutil.which("systemd-analyze"), "install Debian's systemd: scripts/test does"
    program = one(unit, "Service", "ExecStart").split()[0]
    copy = tmp_path / FILE.name
    copy.write_text(FILE.read_text().replace(program, shutil.which("true") or ""))
    ran = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")
    copy.write_text(copy.read_text().replace("KillMode=", "KilMode="))
    ran = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "KilMode" in ran.stderr, "it tells an unknown directive"
