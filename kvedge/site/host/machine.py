"""One guest's QEMU process: start, adoption, power, end, and what its monitor tells.

QEMU runs in a session of its own and keeps going when the host ends; `record.json` in the
guest's folder is what the next host needs. QEMU is told not to end by itself when the guest
powers off (-no-shutdown), so that a host that was away still learns how the guest ended.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kvedge import errors, processes
from kvedge.site.host import qemu
from kvedge.site.host.detached import Detached
from kvedge.site.host.monitor import GuestAgent, Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvedge.site.host.running import Crew

__all__ = ["Ending", "Machine"]

_LOG = logging.getLogger("kvedge.site.host")
Ending = Literal["", "guest", "killed", "crashed"]
"""How a guest ended: it powered off, we ended it, QEMU died. Empty while it runs."""
_PRESS_SECONDS = 2.0
_QUIT_SECONDS = 5.0


class Machine:
    """A guest's process; `on_change` is called whenever its state changed."""

    def __init__(self, directory: Path, crew: Crew, on_change: Callable[[], None]) -> None:
        self.directory = directory
        self.agent = GuestAgent(directory / qemu.AGENT_SOCKET)
        self.agent_open = False
        self.paused = False
        self.disk_failed = False
        """Paused by QEMU itself: a write failed, most likely for want of space."""
        self.ending: Ending = ""
        self._crew = crew
        self._on_change = on_change
        self._process: Detached | None = None
        self._monitor: Monitor | None = None
        self._ended = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def started(self) -> bool:
        """Whether there is or was a process in this life of the VMI."""
        return self._process is not None or bool(self.ending)

    @property
    def running(self) -> bool:
        """Whether the process is there and the guest has not ended."""
        return self._process is not None and not self._ended.is_set()

    @property
    def pid(self) -> int:
        """Process id, 0 without a process."""
        return self._process.pid if self._process else 0

    async def start(self, argv: Sequence[str]) -> None:
        """Start QEMU and wait until it answers.

        Raises:
            SiteError: QEMU ended at once; carries the last thing it said.
        """
        log = self.directory / "qemu.log"
        self._process = Detached.start(argv, log=log, cwd=self.directory)
        self._save()
        self._tasks.append(self._crew.start(f"guest {self.directory.name} end", self._await_end()))
        try:
            await self._connect(20.0)
        except errors.SiteError as cause:
            tail = log.read_text(errors="replace").strip()[-300:] if log.exists() else ""
            await self.kill()
            raise errors.SiteError(f"QEMU does not run: {tail or cause}") from cause

    async def adopt(self) -> bool:
        """Take over the process of an earlier host; False when there is none.

        Also reads how an ended guest ended.
        """
        record = self._record()
        self.ending = record.get("ending", "")
        self._process = Detached.adopt(record) or _find(self.directory)
        if self._process is None:
            if record.get("pid") and not self.ending:
                self.ending = "crashed"
                self._save()
            return False
        self._save()
        self._tasks.append(self._crew.start(f"guest {self.directory.name} end", self._await_end()))
        try:
            await self._connect(10.0)
        except errors.SiteError:
            _LOG.warning("guest %s: QEMU %s does not answer", self.directory.name, self.pid)
            await self.kill()
        return self.running

    async def _connect(self, seconds: float) -> None:
        monitor = await Monitor.connect(
            self.directory / qemu.MONITOR_SOCKET,
            self._on_event,
            alive=lambda: self._process is not None and self._process.alive,
            seconds=seconds,
        )
        self._monitor = monitor
        self._tasks.append(self._crew.start(f"guest {self.directory.name} monitor", monitor.run()))
        await monitor.command("qmp_capabilities")
        state = await monitor.command("query-status")
        self.paused = state["status"] in {"paused", "prelaunch", "io-error"}
        self.disk_failed = state["status"] == "io-error"
        if state["status"] == "shutdown":
            self._guest_ended()
        for channel in await monitor.command("query-chardev"):
            if channel["label"] == qemu.AGENT_PORT:
                self.agent_open = channel["frontend-open"]

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        if name == "SHUTDOWN" and data.get("guest") and data.get("reason") != "guest-reset":
            self._guest_ended()
        elif name == "VSERPORT_CHANGE" and data.get("id") == qemu.AGENT_PORT:
            self.agent_open = data["open"]
            if not self.agent_open:
                self.agent.close()
        elif name in {"STOP", "RESUME"}:
            self.paused = name == "STOP" and not self.ending
            self.disk_failed = self.disk_failed and self.paused
        elif name == "BLOCK_IO_ERROR" and data.get("action") == "stop":
            self.disk_failed = True
        else:
            return
        self._on_change()

    def _guest_ended(self) -> None:
        if not self.ending:
            self.ending = "guest"
            self._save()
            self._tasks.append(self._crew.start(f"guest {self.directory.name} quit", self._quit()))

    async def _quit(self) -> None:
        """Let QEMU write its caches and go."""
        try:
            await self.command("quit")
            async with asyncio.timeout(_QUIT_SECONDS):
                await self._ended.wait()
        except (errors.SiteError, TimeoutError):
            if self._process:
                self._process.send(signal.SIGKILL)

    async def _await_end(self) -> None:
        assert self._process is not None
        await self._process.wait()
        if self._monitor:
            self._monitor.close()
        self.agent.close()
        self.agent_open = False
        if not self.ending:
            self.ending = "crashed"
        self._ended.set()
        self._save()
        self._on_change()

    async def command(self, name: str, **arguments: Any) -> Any:
        """Run a QMP command."""
        if self._monitor is None:
            raise errors.SiteError("QEMU is not connected")
        return await self._monitor.command(name, **arguments)

    async def stop(self, grace: Callable[[], float]) -> None:
        """Press the power button until the guest is off; end it when the grace time is over.

        Args:
            grace: seconds from the begin of the stop; asked again and again, since a forced stop
                lowers it while the stop goes on.
        """
        loop = asyncio.get_running_loop()
        begun, pressed = loop.time(), -_PRESS_SECONDS
        while self.running and loop.time() - begun < grace():
            # A guest that is still booting does not hear the first press.
            if loop.time() - pressed >= _PRESS_SECONDS:
                pressed = loop.time()
                try:
                    if self.paused:
                        await self.command("cont")
                    await self.command("system_powerdown")
                except errors.SiteError as error:
                    _LOG.info("guest %s: %s", self.directory.name, error)
            try:
                async with asyncio.timeout(0.2):
                    await self._ended.wait()
            except TimeoutError:
                continue
        if self.running:
            await self.kill()

    async def kill(self) -> None:
        """End the process at once."""
        if self._process and self.running:
            if not self.ending:
                self.ending = "killed"
                self._save()
            self._process.send(signal.SIGKILL)
            await self._ended.wait()

    def clear(self) -> None:
        """Remove what an earlier guest left in the folder."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True, mode=0o700)

    def _record(self) -> dict[str, Any]:
        try:
            return json.loads((self.directory / "record.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _save(self) -> None:
        if not self.directory.exists():
            return
        record = {**(self._process.record() if self._process else {}), "ending": self.ending}
        fresh = self.directory / "record.new"
        fresh.write_text(json.dumps(record), encoding="utf-8")
        fresh.replace(self.directory / "record.json")


def _find(directory: Path) -> Detached | None:
    """Find a QEMU that was started here but not yet recorded when its host was killed."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "cwd").readlink() != directory.resolve():
                continue
            if qemu.PROGRAM.encode() not in (entry / "cmdline").read_bytes().split(b"\0")[0]:
                continue
        except OSError:
            continue
        pid = int(entry.name)
        started = processes.start_time(pid)
        if started:
            return Detached(pid, started)
    return None
