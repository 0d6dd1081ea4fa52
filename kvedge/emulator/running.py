"""Running a hub as a process of its own, until SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvedge.emulator import certificates
from kvedge.emulator.faults import Knobs
from kvedge.emulator.hub import Hub, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

__all__ = ["main", "run"]


def main(serving: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on uvloop, with as many open files as there may be.

    asyncio's own TLS keeps 256 KB for each connection; with thousands of devices that counts.
    """
    import uvloop

    _allow_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serving)


def _allow_files() -> None:
    """Allow as many open files as the system lets us: each device is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))


async def run(
    *,
    directory: Path | None,
    ephemeral: bool,
    https: tuple[str, int],
    mqtt: tuple[str, int],
    certificate: tuple[Path, Path] | None,
    host: str,
    aliases: tuple[str, ...],
    evaluation_seconds: float,
    knobs: Mapping[str, Any] | None = None,
    verbose: bool,
    ready: Callable[[str], None],
) -> None:
    """Serve until a signal comes; `ready` hears one line when all ports listen.

    `knobs` are fields of `Knobs`.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    with contextlib.ExitStack() as stack:
        # Only a hub without a folder needs another one: a killed process would leave it behind.
        folder = directory or stack.enter_context(tempfile.TemporaryDirectory(prefix="kvedge-hub-"))
        if certificate is None:
            names = [host, *(alias.rpartition(":")[0] or alias for alias in aliases)]
            _, *made = certificates.ensure(Path(folder) / "pki", names)
            certificate = (made[0], made[1])
        chosen = Knobs(**(knobs or {}))
        settings = Settings(
            directory=None if ephemeral else directory,
            connections=directory,
            certificate=certificate[0],
            key=certificate[1],
            https=https,
            mqtt=mqtt,
            host=host,
            aliases=aliases,
            evaluation_seconds=evaluation_seconds,
            knobs=chosen,
            deployments=10 if chosen.tier == "F1" else 100,
        )
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        async with Hub(settings) as hub:
            ready(f"hub ready: https port {hub.https_port}, mqtt port {hub.mqtt_port}")
            await stop.wait()
