"""The kubelet's HTTPS API: pods, logs, statistics and metrics of the virtual node.

The API server calls it for `kubectl logs` and nodes/…/proxy, metrics-server for usage. Paths and
formats are the kubelet's; labels come in the order namespace, pod, container, which the end-to-end
suite of Virtual Kubelet relies on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from aiohttp import web

from kvedge import errors
from kvedge.node import streaming
from kvedge.node.provider import Attaches, Executes, Forwards, LogOptions
from kvedge.node.sending import timestamp
from kvedge.node.usage import Meter, resource_metrics

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable

    from kvedge.node.access_review import Reviewer
    from kvedge.node.node_object import NodeSpec
    from kvedge.node.pods import PodEngine
    from kvedge.node.provider import Provider
    from kvedge.wire import KubeObject

__all__ = ["KubeletApi"]

_log = logging.getLogger(__name__)
_OPEN = frozenset({"/healthz", "/readyz", "/livez"})
_SUBRESOURCES = {
    "stats": "stats", "metrics": "metrics", "containerLogs": "log", "pods": "pods",
    "runningpods": "pods", "configz": "configz",
}  # fmt: skip
_STREAMING = frozenset({"exec", "attach", "portForward"})
_JSON = "application/json"
_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class KubeletApi:
    """The server; an async context manager whose `port` is known once it is entered."""

    def __init__(
        self,
        node: NodeSpec,
        provider: Provider,
        reviewer: Reviewer,
        *,
        ready: Callable[[], bool],
        unsafe_anonymous_reads: bool = False,
    ) -> None:
        self._provider, self._reviewer = provider, reviewer
        self._ready = ready
        self._anonymous = unsafe_anonymous_reads
        self._meter = Meter(node.name, timestamp())
        self.engine: PodEngine | None = None
        """Set when this process is the node's leader."""
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, address: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Listen; port 0 takes a free one."""
        app = web.Application(middlewares=[self._guard])
        get = app.router.add_get
        for path, handler in (
            ("/pods", self._pods),
            ("/runningpods", self._running),
            ("/containerLogs/{namespace}/{pod}/{container}", self._logs),
            ("/stats/summary", self._summary),
            ("/metrics/resource", self._resource),
            ("/metrics", self._metrics),
            ("/configz", self._configz),
            ("/healthz", self._health),
            ("/livez", self._health),
            ("/readyz", self._readiness),
        ):
            get(path, handler)
            if "{" not in path:
                get(f"{path}/", handler)
        for method in ("GET", "POST"):
            # Some callers put the pod's UID between its name and the container's.
            for uid in ("", "/{uid}"):
                pod = f"{{namespace}}/{{pod}}{uid}"
                app.router.add_route(method, f"/exec/{pod}/{{container}}", self._exec)
                app.router.add_route(method, f"/attach/{pod}/{{container}}", self._attach)
                app.router.add_route(method, f"/portForward/{pod}", self._forward)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, address, port, ssl_context=tls)
        try:
            await site.start()
        except OSError as cause:
            raise errors.KvedgeError(
                f"cannot serve the kubelet API on {address}:{port}: {cause.strerror}",
                hint="choose another port with KUBELET_PORT",
            ) from cause
        self.port = self._runner.addresses[0][1]

    async def aclose(self) -> None:
        """Stop listening."""
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        path = request.path
        try:
            if path not in _OPEN and not self._is_anonymous(path):
                verdict = await self._review(request)
                if verdict[0] != 200:
                    return web.Response(status=verdict[0], text=verdict[1])
            return await handler(request)
        except errors.NotFound as error:
            return web.Response(status=404, text=error.message)
        except errors.Unsupported as error:
            return web.Response(status=400, text=error.message)
        except errors.KvedgeError as error:
            return web.Response(status=500, text=error.message)

    def _is_anonymous(self, path: str) -> bool:
        return self._anonymous and path.startswith(("/stats", "/metrics", "/pods", "/runningpods"))

    async def _review(self, request: web.Request) -> tuple[int, str]:
        first = request.path.split("/")[1]
        token = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        peer = request.transport.get_extra_info("peercert") if request.transport else None
        # A WebSocket comes by GET, but who may only read must not run commands.
        method = "POST" if first in _STREAMING else request.method
        return await self._reviewer.review(method, _SUBRESOURCES.get(first, "proxy"), token, peer)

    def _leading(self) -> PodEngine:
        if self.engine is None:
            raise errors.KvedgeError("this replica is not the node's leader")
        return self.engine

    async def _pods(self, request: web.Request) -> web.Response:
        del request
        body = self._leading().pod_list(running=False)
        return web.Response(body=body, content_type=_JSON)

    async def _running(self, request: web.Request) -> web.Response:
        del request
        return web.Response(body=self._leading().pod_list(running=True), content_type=_JSON)

    async def _health(self, request: web.Request) -> web.Response:
        del request
        return web.Response(text="ok")

    async def _readiness(self, request: web.Request) -> web.Response:
        del request
        ready = self._ready()
        return web.Response(status=200 if ready else 503, text="ok" if ready else "not ready")

    async def _configz(self, request: web.Request) -> web.Response:
        del request
        config = {
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "port": self.port,
            "providerID": self._provider.name,
        }
        return web.json_response({"kubeletconfig": config})

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        pod, container = self._container(request, "run a command in")
        provider, command = self._provider, request.query.getall("command", [])
        if not isinstance(provider, Executes):
            return self._not_offered("exec")
        if not command:
            raise errors.Unsupported("command", "is empty")
        return await streaming.run_terminal(
            request, lambda terminal: provider.execute(pod, container, command, terminal)
        )

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        pod, container = self._container(request, "attach to")
        provider = self._provider
        if not isinstance(provider, Attaches):
            return self._not_offered("attach")
        return await streaming.run_terminal(
            request, lambda terminal: provider.attach(pod, container, terminal)
        )

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        pod, provider = self._pod(request, "forward a port of"), self._provider
        if not isinstance(provider, Forwards):
            return self._not_offered("port-forward")
        return await streaming.forward_ports(
            request, lambda port, stream: provider.forward(pod, port, stream)
        )

    def _not_offered(self, what: str) -> web.Response:
        text = f"provider {self._provider.name!r} does not offer {what}"
        return web.Response(status=501, text=text)

    def _pod(self, request: web.Request, attempt: str) -> KubeObject:
        match = request.match_info
        pod = self._leading().find(match["namespace"], match["pod"])
        if pod is None or match.get("uid", pod["metadata"]["uid"]) != pod["metadata"]["uid"]:
            name = f"{match['namespace']}/{match['pod']}"
            raise errors.NotFound(f"{attempt} {name!r}", status=404, reason="NoSuchPod")
        return pod

    def _container(self, request: web.Request, attempt: str) -> tuple[KubeObject, str]:
        pod, container = self._pod(request, attempt), request.match_info["container"]
        if container not in _container_names(pod):
            name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            raise errors.NotFound(
                f"{attempt} {name!r}", status=404, details=f"no container {container!r}"
            )
        return pod, container

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        pod, container = self._container(request, "read logs of")
        query = request.query
        if query.get("stream", "All") != "All":
            text = f"provider {self._provider.name!r} does not keep the streams apart"
            raise errors.Unsupported("stream", text)
        options = LogOptions(
            tail=_number(query, "tailLines"),
            follow=query.get("follow") == "true",
            since_seconds=_number(query, "sinceSeconds"),
            since_time=query.get("sinceTime", ""),
            timestamps=query.get("timestamps") == "true",
            previous=query.get("previous") == "true",
            limit_bytes=_number(query, "limitBytes"),
        )
        stream = _limited(self._provider.logs(pod, container, options), options.limit_bytes)
        if not options.follow:
            # All of it is read before the head goes out, so that a failure has a status.
            pieces = [piece async for piece in stream]
            return web.Response(body=b"".join(pieces), content_type="text/plain")
        answer = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await answer.prepare(request)
        async for piece in stream:
            await answer.write(piece)
        return answer

    async def _summary(self, request: web.Request) -> web.Response:
        del request
        used = await self._provider.usage()
        return web.json_response(self._meter.summary(self._started_pods(), used, timestamp()))

    def _started_pods(self) -> list[KubeObject]:
        return [pod for pod in self._leading().pods() if (pod.get("status") or {}).get("startTime")]

    async def _resource(self, request: web.Request) -> web.Response:
        del request
        lines = resource_metrics(self._started_pods(), await self._provider.usage())
        return web.Response(text=lines, headers={"Content-Type": _TEXT})

    async def _metrics(self, request: web.Request) -> web.Response:
        del request
        lines: list[str] = []
        if self.engine is not None:
            counters = self.engine.counters
            for name, value in (
                ("status_patches_total", counters.statuses),
                ("pod_deletes_total", counters.deletes),
                ("events_total", counters.events),
                ("events_lost_total", counters.events_lost),
                ("failures_total", counters.failures),
            ):
                lines += [f"# TYPE kvedge_node_{name} counter", f"kvedge_node_{name} {value}"]
            lines += ["# TYPE kvedge_node_events_waiting gauge"]
            lines += [f"kvedge_node_events_waiting {len(self.engine.events)}"]
        leading = int(self.engine is not None)
        lines += ["# TYPE kvedge_node_leader gauge", f"kvedge_node_leader {leading}", ""]
        return web.Response(text="\n".join(lines), headers={"Content-Type": _TEXT})


async def _limited(pieces: AsyncIterator[bytes], limit: int | None) -> AsyncIterator[bytes]:
    """Yield no more than a number of bytes; None yields all."""
    left = limit
    async for piece in pieces:
        yield piece if left is None else piece[:left]
        if left is not None:
            left -= len(piece)
            if left <= 0:
                return


def _number(query: Any, name: str) -> int | None:
    try:
        return int(query[name]) if name in query else None
    except ValueError as cause:
        raise errors.Unsupported(name, "is not a whole number") from cause


def _container_names(pod: KubeObject) -> list[str]:
    spec = pod["spec"]
    return [c["name"] for c in [*(spec.get("initContainers") or ()), *spec["containers"]]]
