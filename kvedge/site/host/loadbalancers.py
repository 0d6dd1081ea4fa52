"""Services of type LoadBalancer: an address that is listened on and leads to ready endpoints.

Each TCP port is also published on the machine's own 127.0.0.1; the annotation
`kvedge.io/published` tells where ("22=127.0.0.1:40123"). Clients outside come from 127.0.0.1, so
`loadBalancerSourceRanges` without that address keeps a port unpublished. UDP is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import itertools
import logging
from typing import TYPE_CHECKING, Any

from kvedge import errors, names
from kvedge.site.host.running import Actors, timestamp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvedge import kube
    from kvedge.site.host.addresses import AddressPool
    from kvedge.site.host.podstatus import PodWriter
    from kvedge.site.host.running import Crew
    from kvedge.site.host.settings import HostSettings

__all__ = ["PUBLISHED", "LoadBalancers", "allowed", "ready_targets"]

_LOG = logging.getLogger("kvedge.site.host")
PUBLISHED = f"{names.ANNOTATION}/published"
_OUTSIDE = "127.0.0.1"
_CHUNK = 256 * 1024
_CONNECT_SECONDS = 10.0
_AGAIN_SECONDS = 15.0


def allowed(address: str, ranges: list[str]) -> bool:
    """Whether a client may come in; no ranges let all in."""
    if not ranges:
        return True
    client = ipaddress.ip_address(address)
    return any(client in ipaddress.ip_network(item.strip(), strict=False) for item in ranges)


def ready_targets(
    slices: Mapping[str, Mapping[str, Any]], port: Mapping[str, Any]
) -> list[tuple[str, int]]:
    """Return addresses and ports of the ready endpoints behind a Service's port.

    Args:
        slices: the Service's EndpointSlices by UID.
    """
    found = []
    for item in slices.values():
        number = next(
            (
                entry.get("port")
                for entry in item.get("ports") or ()
                if (entry.get("name") or "") == (port.get("name") or "")
            ),
            None,
        )
        if number is None:
            continue
        for endpoint in item.get("endpoints") or ():
            if (endpoint.get("conditions") or {}).get("ready", True) is not False:
                found.extend((address, number) for address in endpoint["addresses"])
    return sorted(found)


@dataclasses.dataclass(slots=True)
class _Listener:
    """One port of one Service."""

    server: asyncio.Server
    published: Any = None
    problem: str = ""


class _Balancer:
    """The actor of one Service."""

    def __init__(self, owner: LoadBalancers, service: dict[str, Any]) -> None:
        self.service = service
        self.listeners: dict[int, _Listener] = {}
        self.slices: dict[str, dict[str, Any]] = {}
        self._owner = owner
        self._turns = itertools.count()
        self._pipes: set[asyncio.StreamWriter] = set()

    @property
    def name(self) -> str:
        """Name for the log."""
        metadata = self.service["metadata"]
        return f"service {metadata['namespace']}/{metadata['name']}"

    async def step(self) -> float | None:
        """Listen on what the Service names and tell where."""
        if not self.wanted:
            await self.close()
            await self._tell(None, {})
            return None
        ports = {port["port"]: port for port in self.service["spec"].get("ports") or ()}
        tcp = {n: p for n, p in ports.items() if (p.get("protocol") or "TCP") == "TCP"}
        address = self._address()
        for number in set(self.listeners) - set(tcp):
            await self._drop(number)
        for number in tcp:
            if number not in self.listeners:
                await self._listen(address, number)
        problems = [
            f"port {n}: protocol {p.get('protocol')} is not done here"
            for n, p in ports.items()
            if n not in tcp
        ]
        for number in tcp:
            problem = await self._publish(address, number)
            if problem:
                problems.append(problem)
        await self._tell(address, ports, problems)
        return _AGAIN_SECONDS if problems else None

    @property
    def wanted(self) -> bool:
        """Whether the Service asks for a balancer of ours."""
        spec = self.service["spec"]
        return (
            spec.get("type") == "LoadBalancer"
            and not spec.get("loadBalancerClass")
            and not self.service["metadata"].get("deletionTimestamp")
        )

    def _address(self) -> str:
        status = (self.service.get("status") or {}).get("loadBalancer") or {}
        kept = next((entry.get("ip") for entry in status.get("ingress") or ()), None)
        asked = self.service["spec"].get("loadBalancerIP")
        return self._owner.pool.take(self.service["metadata"]["uid"], wanted=kept or asked)

    def _ranges(self) -> list[str]:
        return self.service["spec"].get("loadBalancerSourceRanges") or []

    async def _listen(self, address: str, number: int) -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(address, number, reader, writer)

        try:
            server = await asyncio.start_server(accept, address, number, limit=_CHUNK)
        except OSError as cause:
            raise errors.SiteError(
                f"{self.name}: cannot listen on {address}:{number}: {cause.strerror}"
            ) from cause
        self.listeners[number] = _Listener(server)

    async def _publish(self, address: str, number: int) -> str:
        listener = self.listeners[number]
        if not allowed(_OUTSIDE, self._ranges()):
            if listener.published:
                await listener.published.aclose()
                listener.published = None
            return f"port {number}: not published, {_OUTSIDE} is not in loadBalancerSourceRanges"
        if listener.published is None:
            from kvedge.site import publishing

            wanted = self._published_before().get(number, 0)
            for port in dict.fromkeys((wanted, 0)):
                try:
                    listener.published = await publishing.publish(
                        self._owner.settings.publisher, (address, number), host_port=port
                    )
                except (errors.KvedgeError, OSError) as error:
                    listener.problem = f"port {number}: not published: {error}"
                else:
                    return ""
            return listener.problem
        return ""

    def _published_before(self) -> dict[int, int]:
        """Return the host's ports of an earlier host: a client's address should stay good."""
        annotations = self.service["metadata"].get("annotations") or {}
        found = {}
        for entry in annotations.get(PUBLISHED, "").split(","):
            inside, _, outside = entry.partition("=")
            with contextlib.suppress(ValueError):
                found[int(inside)] = int(outside.rpartition(":")[2])
        return found

    async def _serve(
        self,
        address: str,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        peer = writer.get_extra_info("peername")
        # The kernel gives a connection to a local address that address as its source, so the
        # publisher's side is known by it; what it lets in was checked when it was published.
        inside = peer is not None and peer[0] != address
        if inside and not allowed(peer[0], self._ranges()):
            writer.transport.abort()
            return
        port = next(
            (p for p in self.service["spec"].get("ports") or () if p["port"] == number), None
        )
        targets = ready_targets(self.slices, port) if port else []
        for _ in targets:
            target = targets[next(self._turns) % len(targets)]
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    there = await asyncio.open_connection(*target, limit=_CHUNK)
            except (OSError, TimeoutError):
                continue
            await self._splice((reader, writer), there)
            return
        writer.transport.abort()

    async def _splice(
        self,
        here: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        there: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._pipes |= {here[1], there[1]}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(here[0], there[1]), name=f"{self.name} out")
                group.create_task(_pump(there[0], here[1]), name=f"{self.name} in")
        finally:
            for writer in (here[1], there[1]):
                writer.transport.abort()
                self._pipes.discard(writer)

    async def _tell(
        self, address: str | None, ports: Mapping[int, Any], problems: list[str] | None = None
    ) -> None:
        metadata = self.service["metadata"]
        if metadata.get("deletionTimestamp"):
            return
        path = f"/api/v1/namespaces/{metadata['namespace']}/services/{metadata['name']}"
        old = (self.service.get("status") or {}).get("loadBalancer") or {}
        ingress = [{"ip": address, "ipMode": "Proxy"}] if address else []
        kept = [(item.get("ip"), item.get("ipMode")) for item in old.get("ingress") or ()]
        if kept != [(item["ip"], item["ipMode"]) for item in ingress]:
            await self._owner.kube.patch(
                f"{path}/status", {"status": {"loadBalancer": {"ingress": ingress or None}}}
            )
        published = ",".join(
            f"{number}={_OUTSIDE}:{listener.published.port}"
            for number, listener in sorted(self.listeners.items())
            if listener.published and number in ports
        )
        annotations = metadata.get("annotations") or {}
        if annotations.get(PUBLISHED, "") != published:
            # The status subresource takes annotations too, so no right to change specs is needed.
            await self._owner.kube.patch(
                f"{path}/status", {"metadata": {"annotations": {PUBLISHED: published or None}}}
            )
        await self._tell_problems(path, problems or [])

    async def _tell_problems(self, path: str, problems: list[str]) -> None:
        kind = "LoadBalancerPortsError"
        message = "; ".join(problems)
        present = (self.service.get("status") or {}).get("conditions") or []
        old = next((item for item in present if item["type"] == kind), {})
        if (old.get("message") or "") == message:
            return
        condition = {
            "type": kind,
            "status": "True" if problems else "False",
            "reason": "PortsNotServed" if problems else "PortsServed",
            "message": message,
            "lastTransitionTime": timestamp(),
        }
        await self._owner.kube.patch(
            f"{path}/status", {"status": {"conditions": [condition]}}, kind="strategic"
        )

    async def _drop(self, number: int) -> None:
        listener = self.listeners.pop(number)
        if listener.published:
            await listener.published.aclose()
        listener.server.close()

    async def close(self) -> None:
        """Stop listening and end all connections."""
        for number in list(self.listeners):
            await self._drop(number)
        for writer in list(self._pipes):
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.transport.abort()


class LoadBalancers:
    """All Services of type LoadBalancer."""

    def __init__(
        self,
        *,
        settings: HostSettings,
        kube: kube.Client,
        crew: Crew,
        pool: AddressPool,
        writer: PodWriter,
    ) -> None:
        self.settings = settings
        self.kube = kube
        self.pool = pool
        self.writer = writer
        self._crew = crew
        self._actors: Actors[_Balancer] = Actors(crew)
        self._slices: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}

    async def watch_services(self) -> None:
        """Serve Services for ever."""
        async for kind, service in self.kube.watch("/api/v1/services"):
            if kind == "SYNCED":
                continue
            uid = service["metadata"]["uid"]
            actor = self._actors.get(uid)
            if kind == "DELETED":
                self._actors.discard(uid)
                if actor:
                    self._crew.start(f"{actor.name} gone", actor.close())
                    self.pool.free(uid)
                continue
            if actor is None:
                if service["spec"].get("type") != "LoadBalancer":
                    continue
                actor = _Balancer(self, service)
                actor.slices = self._of(
                    service["metadata"]["namespace"], service["metadata"]["name"]
                )
                self._actors.add(uid, actor)
            else:
                actor.service = service
                self._actors.wake(uid)

    def _of(self, namespace: str, name: str) -> dict[str, dict[str, Any]]:
        return self._slices.setdefault((namespace, name), {})

    async def watch_slices(self) -> None:
        """Keep the EndpointSlices of all Services for ever."""
        async for kind, item in self.kube.watch("/apis/discovery.k8s.io/v1/endpointslices"):
            if kind == "SYNCED":
                continue
            metadata = item["metadata"]
            service = (metadata.get("labels") or {}).get("kubernetes.io/service-name")
            if not service:
                continue
            slices = self._of(metadata["namespace"], service)
            if kind == "DELETED":
                slices.pop(metadata["uid"], None)
            else:
                slices[metadata["uid"]] = item
