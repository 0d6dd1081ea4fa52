"""The supervisor: inside the site's namespaces, it starts parts in order and keeps them running.

It reads run/plan.json and tells what it sees in run/status.json. Killed and started again, it
adopts the parts that still run: by process id and start time as it wrote them down, or by their
command line when it was killed before it could. SIGTERM stops the site in order; SIGHUP ends every
back-off and checks every part anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvedge import errors, kube, processes
from kvedge.site import checking, processtable, state
from kvedge.site.bootstrap import Bootstrap
from kvedge.site.parts import Part, Plan, Step

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Mapping

__all__ = ["PART_VARIABLE", "Supervisor"]

PART_VARIABLE = "KVEDGE_SITE_PART"
"""Name and digest of the part, in its environment."""

_POLL_SECONDS = 0.05
_FIRST_BACK_OFF = 0.2
_LONGEST_BACK_OFF = 10.0
_STABLE_SECONDS = 20.0
_LOG_LIMIT = 32 * 1024 * 1024


@dataclasses.dataclass(slots=True)
class _Running:
    """A living process of a part."""

    pid: int
    start: int
    handle: int
    """Its pidfd: readable once it has ended, and never another process."""
    child: subprocess.Popen[bytes] | None = None
    """Set when it is this process's own child, which must be reaped."""


class _Seen:
    """What is known of one part or step."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.poke = asyncio.Event()
        self.running: _Running | None = None
        self.digest = ""
        self.restarts = 0
        self.error = ""
        self.since = 0.0
        self.ready_after = 0.0


class Supervisor:
    """Keeps the parts of one plan running until it is told to stop."""

    def __init__(self, folder: state.Folder, plan: Plan, env: Mapping[str, str]) -> None:
        self._folder = folder
        self._plan = plan
        self._env = env
        self._began = time.monotonic()
        self._seen = {item.name: _Seen() for item in (*plan.parts, *plan.steps)}
        self._stop = asyncio.Event()
        self._state = "starting"
        self._asked = ""
        self._records = self._read_records()
        self._bootstrap: Bootstrap | None = None

    async def run(self) -> None:
        """Start what is needed, keep it running, and stop it in order after SIGTERM."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._poke)
        await self._remove_strangers()
        self._tell()
        config = kube.load_config(self._folder.identities / "admin.kubeconfig")
        async with kube.Client(config) as client, checking.Checker() as checker:
            self._bootstrap = Bootstrap(self._folder, Path(self._plan.manifests), client)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._keep(part, checker), name=f"keep {part.name}")
                    for part in self._plan.parts
                ]
                tasks += [
                    group.create_task(self._do(step), name=f"step {step.name}")
                    for step in self._plan.steps
                ]
                await self._stop.wait()
                for task in tasks:
                    task.cancel()
        await self._stop_all()

    async def stop(self) -> None:
        """Stop in order what an earlier supervisor left behind."""
        for part in self._plan.parts:
            self._seen[part.name].running = await self._adopt(part)
        await self._stop_all()

    async def _keep(self, part: Part, checker: checking.Checker) -> None:
        """Keep one part running; ends only by cancellation."""
        seen = self._seen[part.name]
        seen.digest = part.digest
        back_off = _FIRST_BACK_OFF
        seen.running = await self._adopt(part)
        while True:
            await self._wait_for(part.needs)
            begun = time.monotonic()
            try:
                seen.ready_after = 0.0
                if seen.running is None:
                    seen.running = self._start(part)
                seen.since = time.time()
                self._tell()
                await self._live(part, seen.running, checker)
            except (errors.KvedgeError, OSError) as cause:
                seen.error = str(cause)
            finally:
                seen.ready.clear()
            if seen.running is not None:
                await self._end(part, seen.running)
                seen.running = None
            if time.monotonic() - begun > _STABLE_SECONDS:
                back_off = _FIRST_BACK_OFF
            seen.restarts += 1
            self._tell()
            seen.poke.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(back_off):
                    await seen.poke.wait()
                    back_off = _FIRST_BACK_OFF
            back_off = min(back_off * 2, _LONGEST_BACK_OFF)

    async def _live(self, part: Part, running: _Running, checker: checking.Checker) -> None:
        """Wait until the process ends; mark it ready as soon as it is."""
        seen = self._seen[part.name]
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(running.handle, ended.set)
        begun = time.monotonic()
        try:
            while not ended.is_set():
                seen.poke.clear()
                problem = await checker.problem(part.check, running.pid)
                if not problem and not ended.is_set():
                    seen.ready_after = seen.ready_after or time.monotonic() - begun
                    seen.error = ""
                    seen.ready.set()
                    self._tell()
                    await _first_of(ended, seen.poke)
                    begun = time.monotonic()
                    continue
                if time.monotonic() - begun > part.start_seconds:
                    seen.error = f"not ready after {part.start_seconds:.0f} s: {problem}"
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        await ended.wait()
            seen.error = _epitaph(running, self._folder.log(part.name))
        finally:
            loop.remove_reader(running.handle)

    async def _do(self, step: Step) -> None:
        """Do a bootstrap step until it succeeds, and again when somebody asks."""
        seen = self._seen[step.name]
        back_off = _FIRST_BACK_OFF
        assert self._bootstrap is not None
        while True:
            await self._wait_for(step.needs)
            begun = time.monotonic()
            seen.poke.clear()
            try:
                await self._bootstrap.run(step.name)
            except* errors.KvedgeError as group:
                seen.error = str(next(_leaves(group)))
                seen.restarts += 1
                self._tell()
            else:
                seen.ready_after = time.monotonic() - begun
                seen.error = ""
                seen.ready.set()
                self._tell()
                if all(self._seen[item.name].ready.is_set() for item in self._plan.steps):
                    self._bootstrap.forget()
                await seen.poke.wait()
                back_off = _FIRST_BACK_OFF
                continue
            await asyncio.sleep(back_off)
            back_off = min(back_off * 2, _LONGEST_BACK_OFF)

    async def _wait_for(self, needs: tuple[str, ...]) -> None:
        for name in needs:
            await self._seen[name].ready.wait()

    def _start(self, part: Part) -> _Running:
        log = self._folder.log(part.name)
        with contextlib.suppress(OSError):
            if log.stat().st_size > _LOG_LIMIT:
                log.rename(log.with_suffix(".log.1"))
        env = {**self._env, **part.env, PART_VARIABLE: f"{part.name}:{part.digest}"}
        child = processes.popen(part.argv, env=env, clean_env=True, log=log, cwd=self._folder.root)
        handle = os.pidfd_open(child.pid)
        return _Running(
            pid=child.pid,
            start=processes.start_time(child.pid) or 0,
            handle=handle,
            child=child,
        )

    async def _adopt(self, part: Part) -> _Running | None:
        """Find the part's process of an earlier supervisor; end it if it is outdated."""
        record = self._records.get(part.name, {})
        candidates = []
        if record.get("pid"):
            candidates.append((record["pid"], record["start"]))
        own = processtable.inode("self", "net")
        candidates += [
            found
            for found in processtable.same_command(part.argv)
            if processtable.inode(found[0], "net") == own
        ]
        for pid, start in candidates:
            running = _open(pid, start)
            if running is None:
                continue
            if processtable.variable(pid, PART_VARIABLE) == f"{part.name}:{part.digest}":
                return running
            await self._end(part, running)
        return None

    async def _remove_strangers(self) -> None:
        """End parts that an earlier plan had and this one has not."""
        known = {part.name for part in self._plan.parts}
        for name, record in self._records.items():
            running = _open(record.get("pid", 0), record.get("start", 0))
            if name not in known and running is not None:
                await self._end(Part(name=name, argv=(), check=checking.Check()), running)

    async def _end(self, part: Part, running: _Running) -> None:
        """End a process, politely first, and reap it; may be cancelled and called again."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(running.handle, ended.set)
        try:
            for number, patience in (
                (signal.Signals[part.stop_with], part.stop_seconds),
                (signal.SIGKILL, 5.0),
            ):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(running.handle, number)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        await ended.wait()
                        break
        finally:
            loop.remove_reader(running.handle)
        os.close(running.handle)
        if running.child is not None:
            running.child.poll()

    async def _stop_all(self) -> None:
        self._state = "stopping"
        self._tell()
        for rank in sorted({part.rank for part in self._plan.parts}, reverse=True):
            async with asyncio.TaskGroup() as group:
                for part in self._plan.parts:
                    running = self._seen[part.name].running
                    if part.rank == rank and running is not None:
                        group.create_task(self._end(part, running), name=f"end {part.name}")
            for part in self._plan.parts:
                if part.rank == rank:
                    self._seen[part.name].running = None
            self._tell()
        self._state = "stopped"
        self._tell()

    def _poke(self) -> None:
        """Check everything anew; the token tells `up` that an answer is newer than its question."""
        with contextlib.suppress(OSError):
            self._asked = self._folder.asked_file.read_text(encoding="ascii")
        for seen in self._seen.values():
            seen.ready.clear()
            seen.poke.set()
        self._tell()

    def _tell(self) -> None:
        ready = all(seen.ready.is_set() for seen in self._seen.values())
        if self._state in {"starting", "ready"}:
            self._state = "ready" if ready else "starting"
        own = os.getpid()
        document = {
            "supervisor": {"pid": own, "start": processes.start_time(own)},
            "plan": self._plan.digest,
            "state": self._state,
            "asked": self._asked,
            "seconds": round(time.monotonic() - self._began, 2),
            "cluster_id": self._bootstrap.cluster_id if self._bootstrap else "",
            "parts": {part.name: _told(self._seen[part.name]) for part in self._plan.parts},
            "steps": {step.name: _told(self._seen[step.name]) for step in self._plan.steps},
        }
        # A full disk must not end the supervisor: the parts' own errors will tell.
        with contextlib.suppress(errors.SiteError):
            state.write_atomically(self._folder.status_file, json.dumps(document, indent=1))

    def _read_records(self) -> dict[str, dict[str, Any]]:
        try:
            return json.loads(self._folder.status_file.read_bytes())["parts"]
        except (OSError, ValueError, KeyError):
            return {}


def _told(seen: _Seen) -> dict[str, Any]:
    running = seen.running
    return {
        "pid": running.pid if running else 0,
        "start": running.start if running else 0,
        "ready": seen.ready.is_set(),
        "restarts": seen.restarts,
        "ready_after": round(seen.ready_after, 2),
        "since": round(seen.since, 3),
        "error": seen.error,
    }


async def _first_of(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    done = asyncio.Event()

    async def forward(event: asyncio.Event) -> None:
        await event.wait()
        done.set()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(forward(event), name="first of") for event in events]
        await done.wait()
        for task in tasks:
            task.cancel()


def _open(pid: int, start: int) -> _Running | None:
    """Take hold of a process if it is the one that was written down."""
    if not pid:
        return None
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return None
    # Looked at after the handle exists, the number cannot have changed hands in between.
    if processes.start_time(pid) != start:
        os.close(handle)
        return None
    return _Running(pid=pid, start=start, handle=handle)


def _epitaph(running: _Running, log: Path) -> str:
    """Tell how a process ended; its exit code is only known of this process's own children."""
    if running.child is None:
        return "ended"
    code = running.child.wait()
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    words = _last_words(log)
    return f"exited {code}" + (f": {words}" if words else "")


def _last_words(log: Path) -> str:
    """Return the last line of a log that looks like a reason."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    telling = [line.strip() for line in lines if line.strip()]
    worse = [line for line in telling if line.startswith(("E", "F", "error", "panic", '{"level'))]
    return (worse or telling or [""])[-1][:400]


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for item in group.exceptions:
        if isinstance(item, BaseExceptionGroup):
            yield from _leaves(item)
        else:
            yield item


def _main(root: Path, *rest: str) -> None:
    folder = state.Folder(root=root)
    plan = Plan.from_json(folder.plan_file.read_text(encoding="utf-8"))
    # Parts inherit what `up` chose for this process and nothing else.
    supervisor = Supervisor(folder, plan, dict(os.environ))
    asyncio.run(supervisor.stop() if "--stop" in rest else supervisor.run())


if __name__ == "__main__":
    _main(Path(sys.argv[1]), *sys.argv[2:])
