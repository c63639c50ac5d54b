"""`ciworker firewall`, the real program and the real packet filter, in a namespace of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ciworker.cli import rules
from ciworker.errors import Invalid
from tests.namespaces import Namespace, namespace

STRANGERS = (
    "-A INPUT -i ciworker0 -j ACCEPT",
    "-A INPUT -i ciworker0 -m comment --comment ciworker-firewall-not -j ACCEPT",
    '-A INPUT -m comment --comment "not ciworker-firewall" -j ACCEPT',
    "-A FORWARD -i ciworker0 -j ACCEPT",
)
PROXY, RESOLVER = "192.0.2.1:3128", "169.254.169.253:53"


@pytest.fixture
def machine() -> Iterator[Namespace]:
    """One with rules of others, which let jobs everywhere."""
    with namespace() as made:
        for rule in STRANGERS:
            for program in ("iptables", "ip6tables"):
                made.run("sh", "-c", f"{program} {rule}")
        yield made


def firewall(machine: Namespace, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*machine.within, sys.executable, "-m", "ciworker", "firewall", *words],
        capture_output=True, text=True, check=False, env={**os.environ, **more},
    )  # fmt: skip


def firsts(machine: Namespace, program: str, chain: str) -> list[str]:
    """Its rules, up to the first of strangers."""
    found = machine.run(program, "-S", chain).splitlines()[1:]
    end = next((n for n, line in enumerate(found) if "ciworker-firewall -j" not in line), None)
    return found[:end]


def test_an_install_refuses_the_machine_and_link_local_addresses_before_all_other_rules(
    machine: Namespace,
) -> None:
    done = firewall(machine, "install")
    assert (done.returncode, done.stderr) == (0, "")
    ours = "-i ciworker0 -m comment --comment ciworker-firewall -j REJECT --reject-with"
    assert firsts(machine, "iptables", "INPUT") == [f"-A INPUT {ours} icmp-admin-prohibited"]
    assert firsts(machine, "iptables", "FORWARD") == [
        f"-A FORWARD -d 169.254.0.0/16 {ours} icmp-admin-prohibited"
    ]
    for chain in ("INPUT", "FORWARD"):
        assert firsts(machine, "ip6tables", chain) == [f"-A {chain} {ours} icmp6-adm-prohibited"]


def test_an_install_is_the_same_the_second_time_and_moves_to_the_front_what_was_pushed_back(
    machine: Namespace,
) -> None:
    firewall(machine, "install", "--allow", PROXY)
    first = machine.filter()
    machine.run("iptables", "-I", "INPUT", "1", "-i", "ciworker0", "-j", "ACCEPT")
    assert firsts(machine, "iptables", "INPUT") == []
    firewall(machine, "install", "--allow", PROXY)
    assert len(firsts(machine, "iptables", "INPUT")) == 3
    machine.run("iptables", "-D", "INPUT", "-i", "ciworker0", "-j", "ACCEPT")
    assert machine.filter() == first
    firewall(machine, "install", "--allow", PROXY)
    assert machine.filter() == first


def test_what_is_allowed_comes_before_the_refusals_and_goes_with_the_next_install(
    machine: Namespace,
) -> None:
    firewall(machine, "install", "--allow", PROXY, "--allow", RESOLVER)
    incoming, forwarded = (firsts(machine, "iptables", chain) for chain in ("INPUT", "FORWARD"))
    assert [" -j ACCEPT" in line for line in incoming] == [True] * 4 + [False]
    assert [" -j ACCEPT" in line for line in forwarded] == [True] * 2 + [False]
    assert all("-d 169.254.169.253/32 " in line for line in forwarded[:2])
    assert "-p tcp -m tcp --dport 3128" in incoming[0]
    assert "-p udp -m udp --dport 3128" in incoming[1]
    firewall(machine, "install")
    assert "ACCEPT" not in "".join(firsts(machine, "iptables", "INPUT"))


def test_docker_s_own_chain_is_used_where_there_is_one(machine: Namespace) -> None:
    firewall(machine, "install")
    machine.run("iptables", "-N", "DOCKER-USER")
    shown = firewall(machine, "show")
    assert (shown.returncode, shown.stdout.count("# missing")) == (1, 1)
    firewall(machine, "install")
    assert firsts(machine, "iptables", "FORWARD") == []
    assert len(firsts(machine, "iptables", "DOCKER-USER")) == 1


def test_a_remove_removes_exactly_ours(machine: Namespace) -> None:
    before = machine.filter()
    firewall(machine, "install", "--allow", PROXY)
    assert machine.filter() != before
    done = firewall(machine, "remove")
    assert (done.returncode, done.stderr.count("removed ")) == (0, 6)
    assert machine.filter() == before
    assert firewall(machine, "remove").stderr == ""


def test_show_prints_lines_to_paste_and_which_of_them_stand(machine: Namespace) -> None:
    none = firewall(machine, "show", "--allow", PROXY)
    assert (none.returncode, none.stdout.count("# missing")) == (1, 6)
    machine.run("sh", "-ec", none.stdout)
    pasted = machine.filter()
    firewall(machine, "install", "--allow", PROXY)
    assert machine.filter() == pasted
    every = firewall(machine, "show", "--allow", PROXY)
    assert (every.returncode, every.stdout.count("# stands\n")) == (0, 6)
    more = firewall(machine, "show")
    assert (more.returncode, more.stdout.count("# stands\n")) == (0, 4)
    assert more.stdout.count("# stands, too\n") == 2


@pytest.mark.parametrize("command", ["install", "show"])
def test_without_root_or_iptables_the_rules_are_printed_with_what_to_do(
    machine: Namespace, tmp_path: Path, command: str
) -> None:
    as_nobody = ["setpriv", "--reuid", "65534", "--clear-groups"]
    nobody = subprocess.run(
        [*machine.within, *as_nobody, sys.executable, "-m", "ciworker", "firewall", command],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (nobody.returncode, "only root may" in nobody.stderr) == (2, True)
    words = [*machine.within, "env", f"PATH={tmp_path}", sys.executable, "-m", "ciworker"]
    none = subprocess.run(
        [*words, "firewall", command, "--allow", PROXY],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (none.returncode, "apt-get install iptables" in none.stderr) == (2, True)
    assert nobody.stdout.count(" -j REJECT ") == none.stdout.count(" -j REJECT ") == 4
    assert none.stdout.count(" -j ACCEPT\n") == 2


def test_a_filter_that_refuses_is_told_and_keeps_what_it_had(
    machine: Namespace, tmp_path: Path
) -> None:
    before = machine.filter()
    program = tmp_path / "iptables-restore"
    program.write_text("#!/bin/sh\necho 'iptables-restore: line 2 failed' >&2\nexit 1\n")
    program.chmod(0o755)
    done = firewall(machine, "install", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (done.returncode, "line 2 failed" in done.stderr) == (2, True)
    assert machine.filter() == before


WRONG = (
    "192.0.2.1", ":53", "host:53", "[::1]:53", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:-1",
    "192.0.2.1/24:53", "192.0.2.1:53 -j ACCEPT",
)  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_address_with_a_port_is_not_allowed(text: str) -> None:
    with pytest.raises(Invalid, match="has to be an IPv4 address and a port"):
        rules.service(text)
