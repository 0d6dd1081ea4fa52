"""One command on many VMs, a bounded number of ssh sessions at a time."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time
from typing import TYPE_CHECKING

from kvedge import errors
from kvedge.access import sessions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from kvedge import kube
    from kvedge.access.guests import Guest

__all__ = ["Outcome", "Plan", "execute"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is run, and how."""

    command: str
    """One line for the login shell."""
    identities: Sequence[Path] = ()
    through_address: bool = False
    sessions: int = 10
    """Sessions at a time."""
    connect_seconds: float = 60
    """How long a booting VM is tried."""
    command_seconds: float = 600


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of the command on one VM."""

    vm: str
    """`NAMESPACE/NAME`."""
    exit_code: int | None
    """None if the command never ran or was not waited for."""
    stdout: str
    stderr: str
    error: str
    """Why there is no exit code; empty otherwise."""
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether it did not end with 0."""
        return self.exit_code != 0


def execute(config: kube.Config, guests: Sequence[Guest], plan: Plan) -> Iterator[Outcome]:
    """Run the command everywhere and yield each outcome as it comes.

    A VM that cannot be reached is an outcome with an error, never an exception: the others go on.
    """
    with concurrent.futures.ThreadPoolExecutor(plan.sessions, "kvedge-exec") as pool:
        waiting = [pool.submit(_run, config, guest, plan) for guest in guests]
        try:
            for done in concurrent.futures.as_completed(waiting):
                yield done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run(config: kube.Config, guest: Guest, plan: Plan) -> Outcome:
    begun = time.monotonic()
    code, out, err, error = None, "", "", ""
    try:
        with sessions.connect(
            config,
            guest.target,
            public_host_key=guest.pinned_key(),
            address=guest.service() if plan.through_address else None,
            identities=plan.identities,
            deadline_seconds=plan.connect_seconds,
        ) as session:
            code, out, err = session.output(plan.command, timeout=plan.command_seconds)
    except errors.KvedgeError as told:
        error = told.message
    except OSError as told:
        error = str(told)
    return Outcome(
        vm=f"{guest.target.namespace}/{guest.target.name}",
        exit_code=code,
        stdout=out,
        stderr=err,
        error=error,
        seconds=round(time.monotonic() - begun, 2),
    )
