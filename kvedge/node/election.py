"""One leader among replicas, by a Lease.

A replica leads while it renews the Lease in time, and stops by itself when it cannot, before
another one may take over. Expiry is judged by the own clock: how long the Lease looks the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import logging
from typing import TYPE_CHECKING, Any

from kvedge import errors

if TYPE_CHECKING:
    from kvedge.kube import Client

__all__ = ["Election"]

_log = logging.getLogger(__name__)
_RELEASE_TRIES = 3
_RELEASE_SECONDS = 5.0


@dataclasses.dataclass(slots=True, kw_only=True)
class Election:
    """A candidate for one Lease."""

    client: Client
    namespace: str
    name: str
    identity: str
    lease_seconds: float = 15.0
    """How long others wait for a silent leader."""
    renew_seconds: float = 10.0
    """How long a leader may fail to renew before it stops."""
    retry_seconds: float = 2.0
    patience_seconds: float = 0.0
    """How long a free Lease is left to others first; a replica whose shard it is has none."""
    _free_since: float | None = None
    _version: str = ""
    _seen: tuple[Any, float] = (None, 0.0)

    @property
    def _path(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"

    async def acquire(self) -> None:
        """Wait until this replica leads."""
        while not await self._try():  # noqa: ASYNC110 - the Lease is polled
            await asyncio.sleep(self.retry_seconds)
        _log.info("%s leads %s/%s", self.identity, self.namespace, self.name)

    async def hold(self) -> None:
        """Renew until it fails for too long; return when leadership is lost.

        The time counts while a request hangs and while this process is stopped, too.
        """
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout_at(renewed + self.renew_seconds):
                    renewed = await self._renewed()
        _log.error("%s has lost %s/%s", self.identity, self.namespace, self.name)

    async def _renewed(self) -> float:
        """Renew and return the time of the request that did it."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.retry_seconds)
            began = loop.time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.renew_seconds / 2):
                    if await self._try():
                        return began

    async def release(self) -> None:
        """Let another replica lead at once."""
        if not self._version:
            return
        path = f"{self._path}/{self.name}"
        with contextlib.suppress(errors.RemoteError, TimeoutError):
            async with asyncio.timeout(_RELEASE_SECONDS):
                await self._release(path)

    async def _release(self, path: str) -> None:
        for _ in range(_RELEASE_TRIES):
            # A renewal that was cut short may still arrive and bring another version.
            found = await self.client.get(path)
            if found["spec"].get("holderIdentity") != self.identity:
                return
            with contextlib.suppress(errors.Conflict):
                version = found["metadata"]["resourceVersion"]
                await self.client.put(path, self._lease("", version))
                return

    async def _try(self) -> bool:
        try:
            return await self._attempt()
        except errors.Conflict:
            return False
        except errors.RemoteError as error:
            _log.warning("lease %s/%s: %s", self.namespace, self.name, error)
            return False

    async def _attempt(self) -> bool:
        now = asyncio.get_running_loop().time()
        try:
            found = await self.client.get(f"{self._path}/{self.name}")
        except errors.NotFound:
            if self._is_left_to_others(now):
                return False
            made = await self.client.post(self._path, self._lease(self.identity, ""))
            self._version = made["metadata"]["resourceVersion"]
            return True
        spec = found["spec"]
        holder = spec.get("holderIdentity") or ""
        look = (holder, spec.get("renewTime"))
        if look != self._seen[0]:
            self._seen = (look, now)
        expired = now - self._seen[1] >= self.lease_seconds
        if holder not in ("", self.identity) and not expired:
            self._version, self._free_since = "", None
            return False
        if holder != self.identity and self._is_left_to_others(now):
            return False
        version = found["metadata"]["resourceVersion"]
        body = self._lease(self.identity, version)
        transitions = int(spec.get("leaseTransitions") or 0)
        body["spec"]["leaseTransitions"] = transitions + (holder != self.identity)
        if holder == self.identity:
            body["spec"]["acquireTime"] = spec.get("acquireTime")
        made = await self.client.put(f"{self._path}/{self.name}", body)
        self._version = made["metadata"]["resourceVersion"]
        return True

    def _is_left_to_others(self, now: float) -> bool:
        if self._free_since is None:
            self._free_since = now
        return now - self._free_since < self.patience_seconds

    def _lease(self, holder: str, version: str) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        metadata: dict[str, Any] = {"name": self.name, "namespace": self.namespace}
        if version:
            metadata["resourceVersion"] = version
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": int(self.lease_seconds),
                "acquireTime": now,
                "renewTime": now,
            },
        }
