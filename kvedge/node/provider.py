"""What a provider of pods has to offer, what it may offer, and what it is given.

`Provider` is the whole of it: a provider derives from it and writes at least `create` and `delete`;
all else has a default. A provider that can do more has the methods of `Executes`, `Attaches` or
`Forwards` too; the kubelet API finds them by their names and answers 501 without.

Methods are coroutines of one event loop and may be called for many pods at once. `create`, `update`
and `delete` are never called twice at once for the same pod. They raise kvedge.errors: SpecError
and Unsupported are final until the pod changes, everything else is tried again.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable, Iterator, Mapping, Sequence

    from kvedge.wire import KubeObject

__all__ = [
    "Attaches",
    "Executes",
    "Forwards",
    "Health",
    "LogOptions",
    "Outcome",
    "Provider",
    "Reporter",
    "Stream",
    "Terminal",
    "TerminalSize",
    "Usage",
    "Work",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A pod with everything that its spec refers to."""

    pod: KubeObject
    env: Mapping[str, Mapping[str, str]]
    """Resolved variables by container."""
    objects: Mapping[tuple[str, str], Mapping[str, str] | None]
    """Data of what `Provider.wants` named, by kind and name; None if it is not there."""

    @property
    def uid(self) -> str:
        """The pod's UID."""
        return self.pod["metadata"]["uid"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a create or update."""

    status: dict[str, Any] | None = None
    """The pod's status if it is known already; otherwise it is reported later."""
    adopted: bool = False
    """The pod ran already, so nothing was created and no event is due."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether the node can take pods."""

    ready: bool = True
    reason: str = "KubeletReady"
    message: str = "Kubelet is ready"
    conditions: Sequence[Mapping[str, str]] = ()
    """Further node conditions: type, status, reason, message."""


class Usage(NamedTuple):
    """What a container has used and uses."""

    cpu_seconds: float
    """Processor time since its start."""
    memory_bytes: int
    """Working set."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """What part of a container's log is asked for."""

    tail: int | None = None
    follow: bool = False
    since_seconds: int | None = None
    since_time: str = ""
    timestamps: bool = False
    previous: bool = False
    limit_bytes: int | None = None


class Reporter(Protocol):
    """Takes what a provider finds out between calls."""

    def status(self, uid: str, status: dict[str, Any]) -> None:
        """Report a pod's whole status; the newest one counts."""

    def gone(self, uid: str) -> None:
        """Report that a pod that is being deleted has ended."""

    def event(self, uid: str, reason: str, message: str, *, warning: bool = False) -> None:
        """Write an Event about a pod."""

    def pod(self, uid: str) -> KubeObject | None:
        """Return a pod as the API server last told it."""
        ...

    def pods(self) -> Iterator[KubeObject]:
        """Yield all pods of the node that the API server has."""
        ...

    def siblings(self, workload: Hashable) -> list[str]:
        """Return the UIDs of a workload's pods that are not being deleted."""
        ...


class Provider(Protocol):
    """Runs pods somewhere."""

    name: str
    """Goes into the node's taint."""
    service_links: bool = False
    """Whether containers get variables about the cluster's Services."""

    async def start(self, reporter: Reporter) -> None:
        """Begin; called once, before everything else."""

    async def stop(self) -> None:
        """End background work; pods go on running."""

    def workload(self, pod: KubeObject) -> Hashable:
        """Return what a pod is a part of, such as its Deployment's name; asked once a pod."""
        return pod["metadata"]["uid"]

    def wants(self, pod: KubeObject) -> Sequence[tuple[str, str]]:
        """Return ConfigMaps and Secrets (kind, name) to be handed over if they exist."""
        del pod
        return ()

    async def create(self, work: Work) -> Outcome:
        """Run a pod, or adopt it if it runs already."""
        ...

    async def update(self, work: Work) -> Outcome:
        """Change a pod that was created before; by default the change is taken and ignored."""
        del work
        return Outcome()

    async def delete(self, pod: KubeObject) -> bool:
        """End a pod; return False if `Reporter.gone` will tell when it has ended."""
        ...

    async def listed(self, uids: frozenset[str]) -> None:
        """Learn which pods the API server has, once all of them were handed over."""

    def health(self) -> Health:
        """Tell whether the node can take pods."""
        return Health()

    def logs(self, pod: KubeObject, container: str, options: LogOptions) -> AsyncIterator[bytes]:
        """Yield a container's log.

        Raises:
            Unsupported: the provider has no logs.
        """
        del pod, container, options
        raise errors.Unsupported("logs", f"provider {self.name!r} has none")

    async def usage(self) -> Mapping[str, Mapping[str, Usage]]:
        """Return what containers use, by pod UID and container; what is left out counts as none."""
        return {}


class TerminalSize(NamedTuple):
    """Size of a caller's terminal in characters."""

    columns: int
    rows: int


class Terminal(Protocol):
    """The caller's end of a command: where its input comes from and its output goes."""

    tty: bool
    """The command gets a terminal; there is no separate standard error then."""
    stdin: bool
    """The caller sends input; otherwise `read` ends at once."""

    async def read(self) -> bytes:
        """Return the next piece of input; empty when the caller has closed it."""
        ...

    async def write(self, data: bytes) -> None:
        """Send standard output; waits while the caller is slow."""

    async def write_error(self, data: bytes) -> None:
        """Send standard error."""

    async def resized(self) -> TerminalSize:
        """Wait for the terminal's next size; the first comes at once for a terminal."""
        ...


class Stream(Protocol):
    """The caller's end of a forwarded connection."""

    async def read(self) -> bytes:
        """Return the next piece; empty when the caller has closed its side."""
        ...

    async def write(self, data: bytes) -> None:
        """Send a piece; waits while the caller is slow."""


@runtime_checkable
class Executes(Protocol):
    """A provider that runs commands in containers."""

    async def execute(
        self, pod: KubeObject, container: str, command: Sequence[str], terminal: Terminal
    ) -> int:
        """Run a command and return its exit code when it has ended.

        It is cancelled when the caller goes away.

        Raises:
            KvedgeError: the command was not run; the caller reads the message.
        """
        ...


@runtime_checkable
class Attaches(Protocol):
    """A provider that connects a caller to a container's main process."""

    async def attach(self, pod: KubeObject, container: str, terminal: Terminal) -> int:
        """Carry input and output until the process ends; return its exit code.

        It is cancelled when the caller goes away.

        Raises:
            KvedgeError: the container cannot be attached to; the caller reads the message.
        """
        ...


@runtime_checkable
class Forwards(Protocol):
    """A provider that connects a caller to a port of a pod."""

    async def forward(self, pod: KubeObject, port: int, stream: Stream) -> None:
        """Connect to a port and carry bytes both ways until either side has ended.

        It is cancelled when the caller goes away.

        Raises:
            KvedgeError: the port cannot be reached; the caller reads the message.
        """
        ...
