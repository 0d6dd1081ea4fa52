"""`kvedge up`, `down` and `render` as processes: wrong input, interruptions, left-overs, GitOps."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvedge import processes
from kvedge.testing.sites import kubectl
from kvedge.testing.waiting import until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

pytestmark = [pytest.mark.site, pytest.mark.timeout(600)]

OFF = "HostName=localhost:9;SharedAccessKeyName=a;SharedAccessKey=Yg=="
BAD: list[tuple[str, dict[str, Any], dict[str, str | None], int, str]] = [
    # name, changed settings, changed variables, exit code, part of the message
    ("unknown setting", {"flet": []}, {}, 2, "flet: unknown setting, did you mean 'fleet'"),
    ("two VMs of one name", {"fleet": [{"name": "a"}, {"name": "a"}]}, {}, 2, "'a' is taken by fleet[0]"),
    ("bad target", {"platform": {"baseTarget": "tags.a ="}}, {}, 2, "platform.baseTarget: "),
    ("no hub", {}, {"KVEDGE_HUB_CONNECTION_STRING_FILE": None}, 2, "hub: no hub is named"),
    ("no kubeconfig", {}, {"KVEDGE_KUBECONFIG": "/nowhere/config"}, 2, "cluster.kubeconfig: "),
    ("hub is off", {}, {"KVEDGE_HUB_CONNECTION_STRING": OFF}, 1, "read the hub's statistics"),
    ("registry is off", {}, {"KVEDGE_REGISTRY_PUSH": "localhost:9"}, 1, "reach registry 'localhost:9'"),
    ("no namespace", {}, {"KVEDGE_NAMESPACE": "nowhere"}, 1, "namespace 'nowhere' is not there"),
    ("refused by admission", {"labels": {"kubevirt.io/created-by": "me"}}, {}, 1, "p1: "),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "variables", "code", "message"), [row[1:] for row in BAD], ids=[r[0] for r in BAD]
)
def test_wrong_input_ends_up_in_one_message_and_makes_nothing(
    stack: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any],
    variables: dict[str, str | None], code: int, message: str,
) -> None:  # fmt: skip
    """Exit code, the field or object by name, no traceback, and neither cluster nor hub touched."""
    stack.write({**stack.settings, **changes})
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            if value is None:
                patch.delenv(name)
            else:
                patch.setenv(name, value)
        done = stack.run("up", stack.name, "--no-wait")
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert stack.objects() == []
    assert stack.hub() == ([], [])


def test_a_cluster_that_is_off_is_told_by_its_address(
    stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within seconds, before the hub is asked for anything."""
    file = stack.folder / "off"
    text = Path(stack.site.kubernetes.kubeconfig).read_text()
    file.write_text(text.replace(stack.site.kubernetes.server, "https://127.0.0.1:9"))
    with monkeypatch.context() as patch:
        patch.setenv("KVEDGE_KUBECONFIG", str(file))
        done = stack.run("up", stack.name, "--no-wait", seconds=60)
    assert done.returncode == 1
    assert "Unreachable" in done.stderr
    assert "('127.0.0.1', 9)" in done.stderr
    assert "Traceback" not in done.stderr
    assert stack.hub() == ([], [])


def test_a_full_disk_is_told_before_anything_is_made(stack: Any) -> None:
    """The folder and what is free there; neither cluster nor hub is touched."""
    folder = stack.folder / "stacks"
    folder.mkdir()
    done = processes.run(
        [
            "unshare", "--user", "--map-root-user", "--mount", "sh", "-ec",
            f'mount -t tmpfs -o size=16m none {folder}; exec "$@"', "sh",
            sys.executable, "-m", "kvedge", "up", stack.name, "--no-wait",
        ],
        what="kvedge up on a full disk", cwd=stack.project.folder, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"MiB free for '{folder}'" in done.stderr
    assert (stack.objects(), stack.hub()) == ([], ([], []))


def begin(stack: Any) -> subprocess.Popen[bytes]:
    """Start `kvedge up` and come back when the first objects are there."""
    child = processes.popen(
        [sys.executable, "-m", "kvedge", "up", stack.name, "--no-wait"],
        cwd=stack.project.folder, log=stack.folder / "up.log",
    )  # fmt: skip
    until(lambda: stack.objects() or child.poll() is not None, seconds=200, what="first objects")
    assert child.poll() is None, (stack.folder / "up.log").read_text()
    return child


@pytest.mark.parametrize("how", ["kill pulumi", "kill kvedge", "interrupt"])
def test_nothing_is_left_of_a_run_that_ends_early(
    stack: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """No plugin process and no temporary file stays; the next `up` completes the work."""
    temporary = stack.folder / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    child = begin(stack)
    if how == "kill pulumi":
        engine = stack.pulumi()
        assert engine is not None
        os.kill(engine, signal.SIGKILL)
    else:
        child.send_signal(signal.SIGKILL if how == "kill kvedge" else signal.SIGINT)
    code = child.wait(timeout=60)
    assert code == {"kill pulumi": 1, "kill kvedge": -signal.SIGKILL, "interrupt": 130}[how]
    until(lambda: not stack.processes(), seconds=30, what="all processes are gone")
    until(lambda: not list(temporary.iterdir()), seconds=10, what="all temporary files are gone")
    assert stack.run("up", stack.name, "--no-wait").returncode == 0
    assert stack.hub()[0] == ["plant-p1", "plant-p2"]
    assert stack.run("down", stack.name).returncode == 0
    assert stack.objects() == []
    assert not list(temporary.iterdir())


def test_two_environments_share_a_hub_and_its_connector(
    make_stack: Callable[..., Any],
) -> None:
    """The second adds devices only; taking it away leaves the first as it was."""
    first = make_stack()
    raw = {key: value for key, value in first.settings.items() if key != "platform"}
    second = make_stack("annex", {**raw, "fleet": [{"name": "a1"}]})
    first.up()
    assert first.run("env", "validate", "plant", "annex").returncode == 0
    before = first.objects(), first.hub()
    second.up()
    assert second.hub()[0] == ["annex-a1"]
    assert not [name for name in second.objects() if "deployment" in name]
    assert (first.objects(), first.hub()) == before
    second.write({**second.settings, "platform": first.settings["platform"]})
    done = second.run("env", "validate")
    assert done.returncode == 2
    assert "hub.kvedge.test' has its platform in annex, plant" in done.stderr
    assert "carries this hub's platform already" in second.run("up", "annex").stderr
    second.write(second.settings)
    assert "annex-a1" in first.run("down", "plant").stderr, "its devices need the platform"
    second.down()
    assert second.objects() == []
    assert (first.objects(), first.hub()) == before
    assert set(first.up().changes) == {"same"}


def test_rendered_files_make_the_objects_that_up_makes(stack: Any) -> None:
    """`kubectl apply -k` of plain output, on an empty cluster, against what `up` had made."""
    stack.up()
    by_up = stack.live()
    out = stack.folder / "rendered"
    done = stack.run("render", stack.name, "--out", str(out), "--secrets", "plain")
    assert done.returncode == 0, done.stderr
    files = {path.name: path.read_text() for path in out.rglob("*.yaml")}
    hidden = stack.secret_values(files.values())
    stack.down()
    kubectl(stack.site, "apply", "--server-side", "-k", str(out))
    try:
        stack.assert_same(stack.live(), by_up)
        again = stack.run("render", stack.name, "--out", str(out), "--secrets", "plain")
        assert again.returncode == 0
        assert {p.name for p in out.rglob("*.yaml")} == set(files)
        references = stack.run("render", stack.name, "--out", str(out))
        assert references.returncode == 0, references.stderr
        text = "".join(path.read_text() for path in out.rglob("*.yaml"))
        assert "ExternalSecret" in text
        for value in hidden:
            assert value not in text
    finally:
        kubectl(stack.site, "delete", "-k", str(out), "--wait=false", "--ignore-not-found",
                check=False)  # fmt: skip
