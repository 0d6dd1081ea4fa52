"""One environment on a real site: engine, admission, hub emulator, registry. No guest is needed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from kvedge import errors, iothub, processes
from kvedge.redact import Secret
from kvedge.testing.sites import kubectl
from kvedge.testing.waiting import until

pytestmark = [pytest.mark.site, pytest.mark.timeout(600)]

STACK = "plant"


def test_up_again_changes_nothing_and_down_leaves_nothing(stack: Any) -> None:
    """The whole life of an environment, with a change in the middle."""
    first = stack.up()
    assert first.changes["create"] > 20
    assert stack.hub()[0] == ["plant-p1", "plant-p2"]
    again = stack.up()
    assert set(again.changes) == {"same"}, again.changes
    by_hand = stack.engine().up(on_event=lambda _: None)
    assert by_hand == again.changes, "what the note of the last run says is what the engine finds"

    shown = kubectl(stack.site, "get", "vm", "p1", "-o", "json").stdout
    vm = json.loads(shown)
    assert vm["metadata"]["annotations"]["kvedge.io/host-key"].startswith("ssh-ed25519 ")
    assert "SharedAccessKey" not in shown
    committed = stack.file.read_text()
    assert "encryptionsalt" not in committed
    assert "keySeed" not in committed

    fewer = {**stack.settings, "fleet": [{"name": "p1", "tags": {"line": "paint"}}]}
    stack.write(fewer)
    changed = stack.up()
    assert changed.changes["update"] >= 1
    assert stack.hub()[0] == ["plant-p1"]
    left = stack.objects()
    assert "datavolume.cdi.kubevirt.io/p2-data" in left, "a data disk outlives its VM"
    assert "virtualmachine.kubevirt.io/p2" not in left

    stack.down()
    assert stack.objects() == []
    assert stack.hub() == ([], [])


def test_keys_and_disks_change_in_place(stack: Any) -> None:
    """Another key version is a new device key and host key; a disk grows and never shrinks."""

    def seen() -> tuple[str, str, str]:
        vm = json.loads(kubectl(stack.site, "get", "vm", "p1", "-o", "json").stdout)
        data = json.loads(kubectl(stack.site, "get", "secret", "p1-edge", "-o", "json").stdout)
        claim = json.loads(kubectl(stack.site, "get", "pvc", "p1-data", "-o", "json").stdout)
        host_key = vm["metadata"]["annotations"]["kvedge.io/host-key"]
        size = claim["spec"]["resources"]["requests"]["storage"]
        return host_key, data["data"]["config.toml"], size

    def set_first(**more: Any) -> None:
        first, second = stack.settings["fleet"]
        stack.write({**stack.settings, "fleet": [{**first, **more}, second]})

    stack.up()
    claim = ("get", "pvc", "p1-data", "-o", "jsonpath={.status.phase}")
    until(lambda: kubectl(stack.site, *claim, check=False).stdout == "Bound", seconds=60)
    before = seen()
    set_first(keyVersion=2, dataDisk="6Gi")
    # The other VM never gets a disk here, so the gate lets nobody be restarted beside it.
    with pytest.raises(errors.KvedgeError, match=r"roll-out stopped: VM 'p2': .*restarted: p1"):
        stack.up()
    after = seen()
    assert [old == new for old, new in zip(before, after, strict=True)] == [False] * 3
    assert after[2] == "6Gi"
    path = ("get", "pvc", "p1-data", "-o", "jsonpath={.status.capacity.storage}")
    until(lambda: kubectl(stack.site, *path).stdout == "6Gi", seconds=30)
    set_first(keyVersion=2)
    with pytest.raises(errors.SpecError, match="p1-data: has 6Gi and cannot shrink to 4Gi"):
        stack.up()
    assert seen() == after


def test_a_killed_up_is_completed_by_the_next(stack: Any) -> None:
    """Kill -9 in the middle: the lock is cleared, nothing is doubled, nothing is lost."""
    code = textwrap.dedent(
        f"""
        from pathlib import Path
        from infra import bringing, engine
        project = engine.Project(folder=Path({str(stack.project.folder)!r}), stacks=Path({str(stack.project.stacks)!r}))
        bringing.bring_up(engine.Engine({STACK!r}, project=project), seconds=1, wait=False)
        """
    )
    child = processes.popen([sys.executable, "-c", code], log=stack.folder / "killed.log")
    until(lambda: stack.objects() or child.poll() is not None, seconds=120, what="first objects")
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    stack.up()
    assert stack.hub()[0] == ["plant-p1", "plant-p2"]
    assert set(stack.up().changes) == {"same"}


def test_down_after_a_killed_first_up_leaves_nothing(stack: Any) -> None:
    """With no state at all, labels and tags are enough to find everything."""
    stack.up()
    stack.engine().forget()
    assert stack.objects()
    outcome = stack.down()
    assert outcome.swept
    assert stack.objects() == []
    assert stack.hub() == ([], [])


def test_the_platform_stays_while_others_need_it(stack: Any) -> None:
    """Devices of another environment keep the platform's environment alive."""
    stack.up()

    async def device(*, make: bool) -> None:
        text = Path(stack.site.hub.connection_string_file).read_text().strip()
        ca_file = Path(stack.site.hub.ca)
        async with iothub.Hub.from_connection_string(Secret(text), ca_file=ca_file) as hub:
            if make:
                tags = {"kvedge": {"managed": True, "environment": "other"}}
                await hub.ensure_device("other-p1", owner={"environment": "other"}, tags=tags)
            else:
                await hub.delete_device("other-p1")

    asyncio.run(device(make=True))
    try:
        with pytest.raises(errors.KvedgeError, match=r"other-p1"):
            stack.down()
        assert stack.hub()[0] == ["plant-p1", "plant-p2"]
    finally:
        asyncio.run(device(make=False))
