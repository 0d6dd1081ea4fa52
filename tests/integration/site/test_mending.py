"""What is killed comes back, and what is taken down leaves nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from kvedge import processes
from kvedge.site import control, namespace, processtable
from kvedge.testing.sites import kubectl, run_kvedge
from kvedge.testing.waiting import until

pytestmark = pytest.mark.site

PARTS = [
    *("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"),
    *("virt-api", "virt-controller", "registry", "ports", "supervisor", "publisher"),
]


def _pids(site):
    return {part.name: part.pid for part in control.status(site.directory).parts}


def _kill(pid):
    start = processes.start_time(pid)
    assert start is not None
    assert processtable.end(pid, start, signal.SIGKILL, patience_seconds=5)


@pytest.mark.parametrize("part", PARTS)
def test_a_killed_part_is_mended_by_up(own_site, part):
    """After kill -9 of any one part a second `up` ends with everything ready again."""
    kubectl(own_site, "create", "configmap", f"kept-{part}")
    before = _pids(own_site)
    _kill(before[part])
    run_kvedge("site", "up", "mine", "--dir", str(own_site.directory))
    after = _pids(own_site)
    assert control.status(own_site.directory).state == "up"
    assert after[part] != before[part]
    if part in {"supervisor", "publisher"}:
        # Parts are adopted: nothing else was restarted.
        assert {**before, part: 0} == {**after, part: 0}
    assert kubectl(own_site, "get", "configmap", f"kept-{part}").returncode == 0


def test_a_killed_holder_is_replaced(own_site):
    """Any process of the site is a door into its namespaces."""
    record = json.loads(own_site.folder.namespace_file.read_bytes())
    before = _pids(own_site)
    _kill(record["holder"])
    run_kvedge("site", "up", "mine", "--dir", str(own_site.directory))
    assert json.loads(own_site.folder.namespace_file.read_bytes())["holder"] != record["holder"]
    assert _pids(own_site) == before


def test_a_part_that_nobody_wrote_down_is_adopted(own_site):
    """A supervisor killed between start and record leaves no twin behind."""
    before = _pids(own_site)
    _kill(before["supervisor"])
    document = json.loads(own_site.folder.status_file.read_bytes())
    del document["parts"]["kube-scheduler"]
    own_site.folder.status_file.write_text(json.dumps(document))
    run_kvedge("site", "up", "mine", "--dir", str(own_site.directory))
    assert _pids(own_site)["kube-scheduler"] == before["kube-scheduler"]


def test_without_up_the_supervisor_mends_by_itself(own_site):
    """A part that ends is started again with back-off."""
    before = _pids(own_site)["kube-scheduler"]
    _kill(before)
    until(lambda: control.status(own_site.directory).state == "up", seconds=60)
    assert _pids(own_site)["kube-scheduler"] not in {before, 0}


def test_everything_killed_at_once_is_mended(own_site):
    """Also with nothing left alive, state comes back from the folder."""
    kubectl(own_site, "create", "configmap", "kept-all")
    inside = namespace.members(own_site.folder)
    for pid in [*inside, _pids(own_site)["publisher"]]:
        os.kill(pid, signal.SIGKILL)
    run_kvedge("site", "up", "mine", "--dir", str(own_site.directory))
    assert kubectl(own_site, "get", "configmap", "kept-all").returncode == 0


def test_an_interrupted_up_is_completed_by_the_next(short_tmp):
    """Ctrl-C at any time leaves something that `up` can finish and `down` can end."""
    import sys

    directory = short_tmp / "s"
    words = ["site", "up", "cut", "--dir", str(directory)]
    log = short_tmp / "up.log"
    first = processes.popen([sys.executable, "-m", "kvedge", *words], log=log)
    until(lambda: "etcd" in log.read_text(), what="etcd is ready", seconds=60)
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=20) == 130
    try:
        run_kvedge(*words)
        assert control.status(directory).state == "up"
    finally:
        run_kvedge("site", "down", "cut", "--dir", str(directory))


def test_down_leaves_no_process_and_keeps_state_and_two_sites_do_not_meet(own_site, short_tmp):
    """A second site lives beside the first; its end is complete and touches nothing else."""
    directory = short_tmp / "second"
    words = ("second", "--dir", str(directory))
    run_kvedge("site", "up", *words)
    second = control.status(directory)
    assert control.status(own_site.directory).state == "up"
    port = json.loads((directory / "site.json").read_text())["ports"]
    assert not set(port.values()) & set(own_site.ports.values())
    site = control.state.load(directory)
    kubectl(site, "create", "configmap", "kept")
    assert kubectl(own_site, "get", "configmap", "kept", check=False).returncode != 0
    members = namespace.members(site.folder)
    assert len(members) >= len(second.parts)
    run_kvedge("site", "down", *words)
    left = [
        pid for pid in [*members, *(p.pid for p in second.parts)] if Path(f"/proc/{pid}").exists()
    ]
    assert [pid for pid in left if processes.start_time(pid) is not None] == []
    assert control.status(directory).state == "down"
    assert control.status(own_site.directory).state == "up"
    run_kvedge("site", "up", *words)
    assert json.loads((directory / "site.json").read_text())["ports"] == port
    assert kubectl(site, "get", "configmap", "kept").returncode == 0
    run_kvedge("site", "down", "--purge", *words)
    assert not directory.exists()


def test_down_ends_parts_whose_supervisor_was_killed(own_site):
    """Orphans are ended in order too, and the next `up` finds all state."""
    kubectl(own_site, "create", "configmap", "kept-orphans")
    words = ("mine", "--dir", str(own_site.directory))
    members = namespace.members(own_site.folder)
    _kill(_pids(own_site)["supervisor"])
    run_kvedge("site", "down", *words)
    assert [pid for pid in members if processes.start_time(pid) is not None] == []
    run_kvedge("site", "up", *words)
    assert kubectl(own_site, "get", "configmap", "kept-orphans").returncode == 0
