"""What a provider of pods has to offer, and what it is given.

All methods are coroutines of one event loop and may be called for many pods at once, but never
twice at once for the same pod. They raise kvedge.errors: SpecError and Unsupported are final until
the pod changes, everything else is tried again.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from kvedge.wire import KubeObject

__all__ = ["Health", "LogOptions", "Outcome", "Provider", "Reporter", "Work"]


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


class Provider(Protocol):
    """Runs pods somewhere."""

    name: str
    """Goes into the node's taint."""
    service_links: bool
    """Whether containers get variables about the cluster's Services."""

    async def start(self, reporter: Reporter) -> None:
        """Begin; called once, before everything else."""

    async def stop(self) -> None:
        """End background work; pods go on running."""

    def wants(self, pod: KubeObject) -> Sequence[tuple[str, str]]:
        """Return ConfigMaps and Secrets (kind, name) to be handed over if they exist."""
        ...

    async def create(self, work: Work) -> Outcome:
        """Run a pod, or adopt it if it runs already."""
        ...

    async def update(self, work: Work) -> Outcome:
        """Change a pod that was created before."""
        ...

    async def delete(self, pod: KubeObject) -> bool:
        """End a pod; return False if `Reporter.gone` will tell when it has ended."""
        ...

    async def listed(self, uids: frozenset[str]) -> None:
        """Learn which pods the API server has, once all of them were handed over."""

    def health(self) -> Health:
        """Tell whether the node can take pods."""
        ...

    def logs(self, pod: KubeObject, container: str, options: LogOptions) -> AsyncIterator[bytes]:
        """Yield a container's log.

        Raises:
            Unsupported: the provider has no logs.
        """
        ...

    async def usage(self) -> Mapping[str, Mapping[str, tuple[float, int]]]:
        """Return CPU cores in use and memory bytes by pod UID and container."""
        ...
