"""A whole virtual node from start to stop: election, engine, node object, kubelet API."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from kvedge import errors, kube
from kvedge.node.access_review import Reviewer
from kvedge.node.election import Election
from kvedge.node.node_object import NodeKeeper, NodeSpec
from kvedge.node.pods import PodEngine
from kvedge.node.runtime import Tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvedge.node.kubelet import KubeletApi
    from kvedge.node.provider import Provider

__all__ = ["Serving", "VirtualNode", "run_all", "stop_on_signals"]

_log = logging.getLogger(__name__)
_FLUSH_SECONDS = 3.0
_SERVICE_ACCOUNT_CA = Path("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How the kubelet API is served."""

    listen: str = "0.0.0.0"
    port: int = 10250
    """0 takes a free port."""
    certificate: Path | None = None
    key: Path | None = None
    request_certificate: bool = False
    """Have the certificate signed by the cluster; until then one that signs itself is shown."""
    client_ca: Path | None = None
    """Authority of client certificates; None takes the cluster's own inside a pod."""
    unsafe_anonymous_reads: bool = False
    """Let anybody read pods, statistics and metrics; for end-to-end suites only."""


class VirtualNode:
    """One node on one provider."""

    def __init__(
        self,
        *,
        config: kube.Config,
        spec: NodeSpec,
        provider: Provider,
        serving: Serving | None = None,
        linger_seconds: float = 0.0,
        leader_namespace: str = "",
        lease_seconds: float = 15.0,
        patience_seconds: float = 0.0,
    ) -> None:
        self._patience_seconds = patience_seconds
        self._lease_seconds = lease_seconds
        self._config, self.spec, self.provider = config, spec, provider
        self._serving = serving
        self._linger = linger_seconds
        self._leader_namespace = leader_namespace
        self.api: KubeletApi | None = None
        self.engine: PodEngine | None = None
        self.registered = asyncio.Event()
        self._started = False
        self._serving_failed = asyncio.Event()
        self._serving_error: errors.KvedgeError | None = None

    async def run(self, stop: asyncio.Event) -> bool:
        """Run until `stop` is set; return False if leadership was lost instead."""
        async with kube.Client(self._config) as client, Tasks() as tasks:
            if self._serving is not None:
                tasks.spawn(self._serve(client, self._serving), "kubelet-api")
            election = self._election(client)
            if election is not None:
                self._started = True
                leads = tasks.spawn(election.acquire(), "election")
                ends = {leads, tasks.spawn(stop.wait(), "stop"), self._watch_serving(tasks)}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                self._check_serving()
                if not leads.done():
                    await self._close_api()
                    return True
            try:
                return await self._lead(client, election, stop)
            finally:
                await self._close_api()
                if election is not None:
                    await election.release()

    def _election(self, client: kube.Client) -> Election | None:
        if not self._leader_namespace:
            return None
        host = os.environ.get("POD_NAME") or os.uname().nodename
        identity = f"{host}-{os.getpid()}-{id(self):x}"
        return Election(
            client=client,
            namespace=self._leader_namespace,
            name=f"kvedge-{self.spec.name}",
            identity=identity,
            lease_seconds=self._lease_seconds,
            renew_seconds=self._lease_seconds * 2 / 3,
            retry_seconds=self._lease_seconds / 7.5,
            patience_seconds=self._patience_seconds,
        )

    async def _lead(
        self, client: kube.Client, election: Election | None, stop: asyncio.Event
    ) -> bool:
        async with Tasks(self._failed) as tasks:
            engine = self.engine = PodEngine(
                client=client,
                node=self.spec,
                provider=self.provider,
                tasks=tasks,
                linger_seconds=self._linger,
            )
            if self.api is not None:
                self.api.engine = engine
            await self.provider.start(engine)
            ends = {
                tasks.spawn(engine.run(), "pods"),
                tasks.spawn(stop.wait(), "stop"),
                self._watch_serving(tasks),
            }
            keeper = NodeKeeper(client, self.spec, self.provider.health)
            await self._first_pods(engine)
            keeping = tasks.spawn(keeper.run(), "node")
            ends.add(keeping)
            if election is not None:
                ends.add(tasks.spawn(election.hold(), "lease"))
            registered = tasks.spawn(keeper.registered.wait(), "registered")
            registered.add_done_callback(lambda _: self.registered.set())
            self._started = True
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            self._check_serving()
            for task in done:
                task.result()
            if stop.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_FLUSH_SECONDS):
                        await engine.events.flush()
                        if election is None:
                            keeping.cancel()
                            await asyncio.wait((keeping,))
                            await keeper.shut_down()
            await self.provider.stop()
            return stop.is_set()

    async def _first_pods(self, engine: PodEngine) -> None:
        """Say Ready only when the pods are known, but do not wait for ever."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                await engine.synced.wait()

    async def _serve(self, client: kube.Client, serving: Serving) -> None:
        """Start the kubelet API; its imports wait until the first pods are under way."""
        try:
            await self._start_api(client, serving)
        except errors.KvedgeError as error:
            self._serving_error = error
            self._serving_failed.set()

    def _watch_serving(self, tasks: Tasks) -> asyncio.Task[bool]:
        return tasks.spawn(self._serving_failed.wait(), "kubelet-api-failed")

    def _check_serving(self) -> None:
        if self._serving_error is not None:
            raise self._serving_error

    async def _start_api(self, client: kube.Client, serving: Serving) -> None:
        from kvedge.node import serving as certificates
        from kvedge.node.kubelet import KubeletApi

        client_ca = serving.client_ca
        if client_ca is None and _SERVICE_ACCOUNT_CA.exists():
            client_ca = _SERVICE_ACCOUNT_CA
        tls = certificates.server_context(
            self.spec.name,
            self.spec.address,
            certificate=serving.certificate,
            key=serving.key,
            client_ca=client_ca,
        )
        api = KubeletApi(
            self.spec,
            self.provider,
            Reviewer(client, self.spec.name),
            ready=lambda: self._started,
            unsafe_anonymous_reads=serving.unsafe_anonymous_reads,
        )
        await api.start(serving.listen, serving.port, tls)
        api.engine = self.engine
        self.api = api
        if serving.request_certificate:
            from kvedge.node.signing import keep_certificate

            await keep_certificate(client, tls, self.spec.name, self.spec.address)

    async def _close_api(self) -> None:
        if self.api is not None:
            await self.api.aclose()
            self.api = None

    def _failed(self, name: str, error: BaseException) -> None:
        _log.error("task %s failed", name, exc_info=error)


async def run_all(nodes: Sequence[VirtualNode]) -> bool:
    """Run nodes until a signal comes; return False if one has lost its leadership."""
    stop = stop_on_signals()
    async with Tasks() as tasks:
        running = [tasks.spawn(node.run(stop), f"node-{index}") for index, node in enumerate(nodes)]
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        lost = not all(task.result() for task in done)
        stop.set()
        await asyncio.wait(running)
    return not lost


def stop_on_signals() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
