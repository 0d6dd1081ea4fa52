"""`kvedge exec`: many VMs at once, bounded, with a truthful summary."""

from __future__ import annotations

import json
import time

import pytest

from kvedge.access import parallel
from kvedge.access.guests import Guest
from kvedge.access.targets import Target

OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtTXCjXpvyNRE3uQJ5Q3GTcPXJfPJrTwqQ9jM2d6aBq"


def run(cli, fleet, *words, code=0):
    """Run kvedge exec on the VMs' addresses."""
    given, out, err = cli("exec", "--via", "address", "-i", str(fleet.user_key), *words)
    assert given == code, err
    return out, err


def test_output_of_all_is_told_apart(cli, fleet):
    """Each line says whose it is; the summary counts."""
    for name in ("a", "b", "c"):
        fleet.add(name)
    out, err = run(cli, fleet, "echo one; echo two")
    wanted = {f"{fleet.namespace}/{name}: {word}" for name in "abc" for word in ("one", "two")}
    assert set(out.splitlines()) == wanted
    assert "3 of 3 VMs succeeded" in err


def test_one_that_fails_makes_the_whole_fail(cli, fleet):
    """The exit code is 1, the VM and its own code are named, the others are done."""
    fleet.add("good")
    (fleet.add("bad") / "mark").touch()
    command = "test ! -e mark || exit 3; echo fine"
    out, _ = run(cli, fleet, "-o", "json", command, code=1)
    found = json.loads(out)
    assert (found["succeeded"], found["failed"]) == (1, 1)
    codes = {vm["vm"].split("/")[1]: (vm["exit_code"], vm["stdout"]) for vm in found["vms"]}
    assert codes == {"good": (0, "fine\n"), "bad": (3, "")}
    _, err = run(cli, fleet, command, code=1)
    assert "1 of 2 VMs succeeded" in err
    assert f"{fleet.namespace}/bad: exit code 3" in err


def test_one_that_is_not_reached_is_an_outcome(cli, fleet):
    """A VM without an sshd is told with its reason; the others go on."""
    fleet.add("good")
    fleet.add("gone", address="127.0.0.1:9")
    out, _ = run(cli, fleet, "--wait", "0.5", "-o", "json", "true", code=1)
    by_name = {vm["vm"].split("/")[1]: vm for vm in json.loads(out)["vms"]}
    assert by_name["good"]["exit_code"] == 0
    assert by_name["gone"]["exit_code"] is None
    assert "no ssh from 'vm.gone" in by_name["gone"]["error"]


def test_selector_chooses(cli, fleet):
    """Only VMs with the labels are asked; none at all is an error with the next act."""
    fleet.add("a")
    fleet.add("b")
    out, _ = run(cli, fleet, "--selector", "kvedge.io/vm=b", "echo here")
    assert out == f"{fleet.namespace}/b: here\n"
    _, err = run(cli, fleet, "--selector", "kvedge.io/vm=z", "true", code=1)
    assert "no VM in namespace" in err


def test_two_dashes_end_the_options(cli, fleet):
    """`ssh VM -- COMMAND` runs the command, as ssh and kubectl exec do."""
    fleet.add("a")
    code, out, err = cli(
        "ssh", "--via", "address", "-i", str(fleet.user_key), "a", "--", "echo", "one two"
    )
    assert (code, out.strip()) == (0, "one two"), err


def test_large_output_and_long_commands(cli, fleet):
    """Two megabytes on both streams arrive whole; a command that does not end is given up."""
    fleet.add("a")
    out, _ = run(cli, fleet, "-o", "json", "head -c 2000000 /dev/zero | tr '\\0' x; seq 200000 >&2")
    (vm,) = json.loads(out)["vms"]
    assert len(vm["stdout"]) == 2_000_000
    assert vm["stderr"].endswith("200000\n")
    _, err = run(cli, fleet, "--timeout", "0.5", "sleep 5", code=1)
    assert "no end within 0.5 s" in err


def test_a_changed_host_key_is_refused_with_both_fingerprints(cli, fleet):
    """Neither ssh nor exec logs in to a VM that proves another key."""
    fleet.add("swapped", pinned=OTHER)
    code, _, err = cli("ssh", "--via", "address", "-i", str(fleet.user_key), "swapped", "true")
    assert code == 1
    assert err.count("SHA256:") == 2
    _, err = run(cli, fleet, "true", code=1)
    assert err.count("SHA256:") == 2


def test_twenty_sessions_over_five_vms(fleet):
    """Twenty commands run on five VMs, never more at a time than asked for."""
    for number in range(5):
        fleet.add(f"vm{number}")
    guests = [
        Guest(
            target=Target(name=name, namespace=fleet.namespace),
            environment="plant",
            host_key=key,
            address=fleet.call("get", f"/api/v1/namespaces/{fleet.namespace}/services/{name}-ssh")[
                "metadata"
            ]["annotations"]["kvedge.io/published"].partition("=")[2],
        )
        for name, key in fleet.host_keys.items()
    ] * 4
    marks = fleet.folder / "marks"
    marks.mkdir()
    plan = parallel.Plan(
        command=f"touch {marks}/$$; ls {marks} | wc -l; sleep 0.3; rm {marks}/$$",
        identities=[fleet.user_key],
        through_address=True,
        sessions=8,
    )
    begun = time.monotonic()
    outcomes = list(parallel.execute(fleet.config, guests, plan))
    assert len(outcomes) == 20
    assert [one.error for one in outcomes if one.failed] == []
    at_a_time = [int(one.stdout) for one in outcomes]
    assert 1 < max(at_a_time) <= 8
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("user_key", ["other"])
def test_a_refused_login_names_the_key(cli, fleet, tmp_path, user_key):
    """The message says which key was offered and what to do."""
    from kvedge.testing import sshd

    fleet.add("a")
    _, other = sshd.make_folder(tmp_path / user_key)
    code, _, err = cli("ssh", "--via", "address", "-i", str(other), "a", "true")
    assert code == 1
    assert str(other) in err
    assert "-i" in err


def test_a_session_that_breaks_is_a_failure(cli, fleet):
    """A guest that hangs up in the middle has no exit code or 255, and there is no traceback."""
    (fleet.add("going") / "drop").touch()
    out, _ = run(cli, fleet, "-o", "json", "true", code=1)
    assert json.loads(out)["vms"][0]["exit_code"] in (None, 255)
