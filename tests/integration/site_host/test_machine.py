"""The life of a guest's process, with real QEMU."""

import asyncio
import contextlib
import os

import pytest

from kvedge import errors, processes
from kvedge.site.host import qemu, tpm
from kvedge.site.host.machine import Machine
from kvedge.site.host.monitor import Monitor
from kvedge.testing.waiting import until_async


def _argv(disk, *more):
    return [
        qemu.PROGRAM, "-accel", "tcg", "-machine", "q35", "-m", "32M", "-display", "none",
        "-nodefaults", "-no-user-config", "-no-shutdown", "-qmp", f"unix:{qemu.MONITOR_SOCKET},server=on,wait=off",
        "-drive", f"file={disk},format=raw,if=ide", *more,
    ]  # fmt: skip


@pytest.fixture
def machine(tmp_path, crew):
    """A machine without a process; what it starts is ended with the test."""
    # The folder is deep on purpose: sockets must work beyond 107 bytes.
    folder = tmp_path / ("deep" * 30)
    made = Machine(folder, crew, lambda: None)
    made.clear()
    yield made
    with contextlib.suppress(ProcessLookupError):
        if made.pid and processes.start_time(made.pid):
            os.kill(made.pid, 9)


async def test_a_guest_that_powers_off_has_succeeded(machine, boot_disk):
    """The guest's own power off is told from every other end, and QEMU goes."""
    await machine.start(_argv(boot_disk("poweroff")))
    await until_async(lambda: not machine.running)
    assert machine.ending == "guest"
    assert processes.start_time(machine.pid) is None


async def test_a_killed_qemu_is_a_crash(machine, boot_disk):
    """Nobody asked for it, so it has failed."""
    await machine.start(_argv(boot_disk("sleep")))
    os.kill(machine.pid, 9)
    await until_async(lambda: not machine.running)
    assert machine.ending == "crashed"


async def test_a_deaf_guest_is_killed_when_its_grace_is_over(machine, boot_disk):
    """A forced stop lowers the grace time while the stop is going on."""
    await machine.start(_argv(boot_disk("sleep")))
    grace = [60.0]
    loop = asyncio.get_running_loop()
    loop.call_later(0.5, lambda: grace.__setitem__(0, 0.0))
    begun = loop.time()
    await machine.stop(lambda: grace[0])
    assert loop.time() - begun < 15
    assert machine.ending == "killed"


async def test_two_stops_at_once_do_not_fight(machine, boot_disk):
    """Pod and VMI are often deleted together."""
    await machine.start(_argv(boot_disk("sleep")))
    async with asyncio.TaskGroup() as group:
        group.create_task(machine.stop(lambda: 0.3))
        group.create_task(machine.stop(lambda: 0.1))
    assert not machine.running


async def test_the_next_host_adopts_a_running_guest(machine, boot_disk, crew):
    """The process is found by its record and its monitor answers again."""
    await machine.start(_argv(boot_disk("sleep")))
    machine._monitor.close()
    heir = Machine(machine.directory, crew, lambda: None)
    assert await heir.adopt()
    assert heir.pid == machine.pid
    assert (await heir.command("query-status"))["running"]
    await heir.kill()


async def test_a_guest_without_a_record_is_found_by_its_folder(machine, boot_disk, crew):
    """A host may be killed between starting QEMU and writing it down."""
    await machine.start(_argv(boot_disk("sleep")))
    machine._monitor.close()
    (machine.directory / "record.json").unlink()
    heir = Machine(machine.directory, crew, lambda: None)
    assert await heir.adopt()
    assert heir.pid == machine.pid
    await heir.kill()


async def test_a_guest_that_ended_while_nobody_looked_has_crashed(tmp_path, crew, boot_disk):
    """A record without its process means that this machine was switched off."""
    folder = tmp_path / "gone"
    folder.mkdir()
    (folder / "record.json").write_text('{"pid": 999999, "started": 1, "ending": ""}')
    machine = Machine(folder, crew, lambda: None)
    assert not await machine.adopt()
    assert machine.ending == "crashed"


async def test_a_start_that_fails_says_what_qemu_said(machine, boot_disk):
    """The message ends up in the VMI's condition."""
    with pytest.raises(errors.SiteError, match="no-such-option"):
        await machine.start(_argv(boot_disk("sleep"), "-no-such-option"))


async def test_a_refused_command_tells_why(machine, boot_disk):
    """QEMU's own words come through."""
    await machine.start(_argv(boot_disk("sleep")))
    with pytest.raises(errors.SiteError, match="no-such-command"):
        await machine.command("no-such-command")
    await machine.kill()
    with pytest.raises(errors.SiteError, match="gone"):
        await machine.command("query-status")


async def test_no_qemu_behind_a_socket_is_told_at_once(tmp_path):
    """A dead process is not waited for until the deadline."""
    with pytest.raises(errors.SiteError, match="ended at once"):
        await Monitor.connect(tmp_path / "none.sock", lambda *_: None, alive=lambda: False)


async def test_the_probe_boots_a_guest():
    """The probe that decides about KVM passes where a guest certainly boots."""
    assert await qemu.boots("tcg")


async def test_the_probe_fails_without_the_accelerator():
    """An accelerator that QEMU does not have is no reason to hang."""
    assert not await qemu.boots("no-such-accelerator")


_TPM = ("-chardev", f"socket,id=tpm0,path={tpm.SOCKET}", "-tpmdev", "emulator,id=tpm0,chardev=tpm0",
        "-device", "tpm-crb,tpmdev=tpm0")  # fmt: skip


async def _tpm_state(machine, disk, state):
    """Run a guest with a TPM once and return what the TPM keeps."""
    machine.clear()
    await tpm.start(machine.directory, state)
    pid = int((machine.directory / "tpm.pid").read_text())
    guest = Machine(machine.directory, machine._crew, lambda: None)
    await guest.start(_argv(disk, *_TPM))
    assert [one["model"] for one in await guest.command("query-tpm")] == ["tpm-crb"]
    await until_async((state / "tpm2-00.permall").exists)
    await guest.kill()
    await until_async(lambda: processes.start_time(pid) is None)
    return (state / "tpm2-00.permall").read_bytes()


async def test_a_tpm_keeps_its_keys_over_a_restart(machine, boot_disk, tmp_path):
    """The emulator runs as long as its guest, and the next guest meets the same seeds."""
    disk = boot_disk("sleep")
    first = await _tpm_state(machine, disk, tmp_path / "kept")
    second = await _tpm_state(machine, disk, tmp_path / "kept")
    other = await _tpm_state(machine, disk, tmp_path / "fresh")

    def differing(one):
        return sum(a != b for a, b in zip(first, one, strict=True))

    # Only counters move; three seeds and proofs of a fresh TPM are hundreds of other bytes.
    assert differing(second) < 32 < 200 < differing(other)


async def test_a_tpm_that_nobody_came_to_is_ended(machine, tmp_path):
    """When QEMU does not start, its TPM goes, too."""
    await tpm.start(machine.directory, tmp_path / "state")
    pid = int((machine.directory / "tpm.pid").read_text())
    tpm.end(machine.directory)
    await until_async(lambda: processes.start_time(pid) is None)
