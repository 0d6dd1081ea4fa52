"""Providers behind HTTP: the broker dialect of Virtual Kubelet's old web provider, and interLink's.

`BrokerProvider` speaks to an endpoint with /createPod, /getPods and so on, as backends in many
languages do. `InterLinkProvider` speaks to an interLink plugin: /create, /delete, /status, /getLogs
(https://github.com/interlink-hq/interLink, its plugin's OpenAPI document).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from kvedge import errors
from kvedge.node import status as statuses
from kvedge.node.provider import Health, LogOptions, Outcome, Provider, Reporter, Work
from kvedge.node.runtime import Tasks
from kvedge.node.sending import timestamp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from kvedge.wire import KubeObject

__all__ = ["BrokerProvider", "InterLinkProvider", "WebProvider"]

_log = logging.getLogger(__name__)
_REFUSED = (400, 413, 422)
"""Answers that will be the same however often a pod is sent."""
_REQUEST_SECONDS = 60.0


class WebProvider(Provider):
    """What both dialects share: requests, and reading all pods' state in one request."""

    name = "web"

    def __init__(self, endpoint: str, *, token: str = "", poll_seconds: float = 5.0) -> None:
        self._base = "http://plugin" if endpoint.startswith("unix:") else endpoint.rstrip("/")
        self._endpoint, self._token, self._poll_seconds = endpoint, token, poll_seconds
        self._session: aiohttp.ClientSession | None = None
        self._tasks = Tasks()
        self._soon = asyncio.Event()
        """Something was handed over since the last poll."""
        self._pods: dict[str, KubeObject] = {}
        """What was handed over, by UID."""
        self._health = Health(
            ready=False, reason="EndpointUnreachable", message=f"{endpoint} has not answered yet"
        )
        self._reporter: Reporter

    async def start(self, reporter: Reporter) -> None:
        """Begin to read what the pods do."""
        self._reporter = reporter
        self._tasks.spawn(self._follow(), "web-poll")

    async def stop(self) -> None:
        """End requests; the pods stay at the endpoint."""
        await self._tasks.aclose()
        if self._session is not None:
            await self._session.close()

    def health(self) -> Health:
        """Tell what the endpoint said last."""
        return self._health

    async def create(self, work: Work) -> Outcome:
        """Hand a pod over, unless the endpoint has it already."""
        pod = _with_env(work)
        found = await self._find(pod)
        if found is None:
            await self._create(work, pod)
        # Only now, for a poll that has begun before must not miss it.
        self._pods[work.uid] = pod
        if found is not None:
            return Outcome(status=found or None, adopted=True)
        self._soon.set()
        return Outcome(status=statuses.waiting_status(pod, "ContainerCreating", ""))

    async def delete(self, pod: KubeObject) -> bool:
        """Have the endpoint end a pod; one that it does not have is fine."""
        with contextlib.suppress(errors.NotFound):
            await self._delete(pod)
        self._pods.pop(pod["metadata"]["uid"], None)
        return True

    async def _follow(self) -> None:
        while True:
            self._soon.clear()
            try:
                await self._poll()
            except errors.KvedgeError as error:
                self._health = Health(
                    ready=False, reason="EndpointUnreachable", message=error.message
                )
            except (KeyError, TypeError, AttributeError, ValueError):
                _log.exception("%s", self._endpoint)
                text = f"{self._endpoint} answers what is not understood"
                self._health = Health(ready=False, reason="EndpointUnreadable", message=text)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await self._soon.wait()
            # Pods that come together share one poll.
            await asyncio.sleep(min(0.2, self._poll_seconds))

    async def _find(self, pod: KubeObject) -> dict[str, Any] | None:
        """Return a pod's status if the endpoint runs it, else None."""
        raise NotImplementedError

    async def _create(self, work: Work, pod: KubeObject) -> None:
        raise NotImplementedError

    async def _delete(self, pod: KubeObject) -> None:
        raise NotImplementedError

    async def _poll(self) -> None:
        raise NotImplementedError

    async def _send(self, method: str, path: str, body: Any = None, **query: str) -> bytes:
        """Send a request and return the answer's body.

        Raises:
            NotFound, Throttled, RemoteError: as the endpoint answered; status 0 without an answer.
            SpecError: it will never take this pod.
        """
        attempt = f"{method} {self._base}{path}"
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        data = None
        if body is not None:
            data, headers["Content-Type"] = orjson.dumps(body), "application/json"
        try:
            async with self._open().request(
                method, self._base + path, params=query, data=data, headers=headers
            ) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as cause:
            text = str(cause) or type(cause).__name__
            raise errors.RemoteError(attempt, reason="Unreachable", details=text) from cause
        if answer.status < 300:
            return content
        text = content[:200].decode(errors="replace").strip()
        if answer.status in _REFUSED and method in ("POST", "PUT"):
            problem = errors.Problem(path="pod", message=f"{answer.status} {text}")
            raise errors.SpecError(f"{self._base} refuses the pod", [problem])
        if answer.status == 404:
            raise errors.NotFound(attempt, status=404, details=text)
        if answer.status == 429:
            after = answer.headers.get("Retry-After", "")
            seconds = float(after) if after.isdigit() else None
            raise errors.Throttled(attempt, status=429, retry_after=seconds, details=text)
        raise errors.RemoteError(attempt, status=answer.status, details=text)

    async def _json(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        content = await self._send(method, path, body, **query)
        try:
            return orjson.loads(content) if content else None
        except orjson.JSONDecodeError as cause:
            raise errors.RemoteError(
                f"{method} {self._base}{path}", reason="NotJson", details=str(cause)
            ) from cause

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            path = self._endpoint.removeprefix("unix:").replace("///", "/")
            unix = self._endpoint.startswith("unix:")
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path) if unix else None,
                timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS),
            )
        return self._session


class BrokerProvider(WebProvider):
    """An endpoint of Virtual Kubelet's web provider."""

    async def describe(self) -> dict[str, str]:
        """Return the endpoint's capacity; called before the node is made."""
        try:
            found = await self._json("GET", "/capacity")
        finally:
            if self._session is not None:
                await self._session.close()
                self._session = None
        return {str(key): str(value) for key, value in (found or {}).items()}

    async def update(self, work: Work) -> Outcome:
        """Hand over the pod's new form."""
        pod = self._pods[work.uid] = _with_env(work)
        await self._send("PUT", "/updatePod", pod)
        return Outcome()

    async def logs(
        self, pod: KubeObject, container: str, options: LogOptions
    ) -> AsyncIterator[bytes]:
        """Yield the endpoint's log; it knows of no option but the tail."""
        metadata = pod["metadata"]
        yield await self._send(
            "GET", "/getContainerLogs",
            namespace=metadata["namespace"], podName=metadata["name"],
            containerName=container, tail=str(options.tail or 0),
        )  # fmt: skip

    async def _find(self, pod: KubeObject) -> dict[str, Any] | None:
        metadata = pod["metadata"]
        with contextlib.suppress(errors.NotFound):
            found = await self._json(
                "GET", "/getPod", namespace=metadata["namespace"], name=metadata["name"]
            )
            if found and found.get("metadata", {}).get("uid", "") in ("", metadata["uid"]):
                return found.get("status") or {}
        return None

    async def _create(self, work: Work, pod: KubeObject) -> None:
        del work
        await self._send("POST", "/createPod", pod)

    async def _delete(self, pod: KubeObject) -> None:
        await self._send("DELETE", "/deletePod", pod)

    async def _poll(self) -> None:
        handed_over = tuple(self._pods.items())
        listed = await self._json("GET", "/getPods") or []
        known = {(p["metadata"].get("namespace"), p["metadata"].get("name")): p for p in listed}
        for uid, pod in handed_over:
            metadata = pod["metadata"]
            found = known.get((metadata["namespace"], metadata["name"]))
            if found is None:
                if uid in self._pods:
                    self._reporter.status(uid, _LOST)
                continue
            status = found.get("status")
            if not status:
                status = await self._json(
                    "GET", "/getPodStatus", namespace=metadata["namespace"], name=metadata["name"]
                )
            if status:
                self._reporter.status(uid, status)
        conditions = await self._json("GET", "/nodeConditions") or []
        ready = next((c for c in conditions if c["type"] == "Ready"), {"status": "True"})
        self._health = Health(
            ready=ready["status"] == "True",
            reason=ready.get("reason") or "EndpointAnswers",
            message=ready.get("message") or self._endpoint,
        )


_LOST = {
    "phase": "Failed",
    "reason": "NotFound",
    "message": "The pod status was not found and may have been deleted from the provider",
}
"""In the words of Virtual Kubelet."""


class InterLinkProvider(WebProvider):
    """A plugin of interLink."""

    def wants(self, pod: KubeObject) -> Sequence[tuple[str, str]]:
        """Ask for what is mounted: the plugin gets ConfigMaps and Secrets with the pod."""
        named = [name for volume in pod["spec"].get("volumes") or () for name in _named(volume)]
        return sorted(set(named))

    async def logs(
        self, pod: KubeObject, container: str, options: LogOptions
    ) -> AsyncIterator[bytes]:
        """Yield the plugin's log."""
        metadata = pod["metadata"]
        asked = {
            "Tail": options.tail or 0,
            "Bytes": options.limit_bytes or 0,
            "Timestamps": options.timestamps,
            "Follow": options.follow,
            "Previous": options.previous,
            "SinceSeconds": options.since_seconds or 0,
            "SinceTime": options.since_time or "0001-01-01T00:00:00Z",
        }
        body = {
            "Namespace": metadata["namespace"], "PodUID": metadata["uid"],
            "PodName": metadata["name"], "ContainerName": container, "Opts": asked,
        }  # fmt: skip
        yield await self._send("GET", "/getLogs", body)

    async def _find(self, pod: KubeObject) -> dict[str, Any] | None:
        uid = pod["metadata"]["uid"]
        try:
            found = await self._json("GET", "/status", [pod]) or []
        except errors.RemoteError as error:
            if error.status == 0:
                raise
            return None  # plugins answer an error for a pod that they do not know
        for entry in found:
            if entry.get("UID") == uid and entry.get("JID"):
                return _status(pod, entry)
        return None

    async def _create(self, work: Work, pod: KubeObject) -> None:
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or ()}
        containers: list[dict[str, Any]] = []
        for container in [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]:
            parts: dict[str, Any] = {
                "name": container["name"], "configMaps": [], "secrets": [], "emptyDirs": [],
                "projectedvolumemaps": [], "persistentVolumeClaims": [],
            }  # fmt: skip
            for mount in container.get("volumeMounts") or ():
                for kind, name in _named(volumes.get(mount["name"], {})):
                    data = work.objects.get((kind, name))
                    if data is not None:
                        key = "configMaps" if kind == "ConfigMap" else "secrets"
                        parts[key].append({"metadata": {"name": name}, "data": dict(data)})
            containers.append(parts)
        await self._send("POST", "/create", [{"pod": pod, "container": containers}])

    async def _delete(self, pod: KubeObject) -> None:
        await self._send("POST", "/delete", pod)

    async def _poll(self) -> None:
        pods = list(self._pods.values())
        for entry in await self._json("GET", "/status", pods) or []:
            pod = self._pods.get(entry.get("UID", ""))
            if pod is not None and entry.get("containers"):
                self._reporter.status(entry["UID"], _status(pod, entry))
        self._health = Health(reason="PluginAnswers", message=self._endpoint)


def _named(volume: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the ConfigMap or Secret that a volume is made of."""
    if volume.get("configMap"):
        return [("ConfigMap", volume["configMap"]["name"])]
    if volume.get("secret"):
        return [("Secret", volume["secret"]["secretName"])]
    return []


def _with_env(work: Work) -> KubeObject:
    """Return the pod with its variables resolved, as remote providers expect it."""
    pod: dict[str, Any] = {**work.pod, "spec": {**work.pod["spec"]}}
    for field in ("initContainers", "containers"):
        if field in pod["spec"]:
            pod["spec"][field] = [
                {
                    **{key: value for key, value in container.items() if key != "envFrom"},
                    "env": [
                        {"name": name, "value": value}
                        for name, value in work.env.get(container["name"], {}).items()
                    ],
                }
                for container in pod["spec"][field]
            ]
    return pod


def _status(pod: KubeObject, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pod's status from a plugin's report on its containers."""
    containers = entry.get("containers") or []
    states = [container.get("state") or {} for container in containers]
    codes = [state["terminated"].get("exitCode", 0) for state in states if state.get("terminated")]
    ready = bool(containers) and all(container.get("ready") for container in containers)
    if states and len(codes) == len(states):
        phase = "Failed" if any(codes) else "Succeeded"
    else:
        phase = "Running" if codes or any(state.get("running") for state in states) else "Pending"
    before = {c["type"]: c for c in (pod.get("status") or {}).get("conditions") or ()}
    now = timestamp()

    def condition(kind: str, *, holds: bool) -> dict[str, str]:
        status, old = str(holds), before.get(kind, {})
        since = old.get("lastTransitionTime") if old.get("status") == status else None
        return {"type": kind, "status": status, "lastTransitionTime": since or now}

    conditions = [
        condition("Initialized", holds=True),
        condition("ContainersReady", holds=ready),
        condition("Ready", holds=ready),
    ]
    status = {"phase": phase, "containerStatuses": containers, "conditions": conditions}
    if phase != "Pending":
        status["startTime"] = (pod.get("status") or {}).get("startTime") or now
    if entry.get("initContainers"):
        status["initContainerStatuses"] = entry["initContainers"]
    pod["status"] = status
    return status
