"""One IoT Hub as asynchronous methods over raw JSON.

Every method takes and returns the hub's own JSON (see kvedge.wire), waits for the budget, retries
what may succeed later, and raises kvedge.errors.RemoteError kinds otherwise. The vendor's client is
synchronous, so it runs on a small pool of threads; each thread keeps its connection open.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import secrets
from typing import TYPE_CHECKING, Any, Self

from kvedge import errors
from kvedge.iothub import failing, sdk
from kvedge.iothub.budget import Budget, Lane
from kvedge.iothub.threads import Threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from kvedge.redact import Secret
    from kvedge.wire import Configuration, DeviceIdentity, QueryRow, Twin

__all__ = ["Hub"]

_PAGE = 100
"""Rows of a query page; the hub allows no more."""
_NEVER = "0001-01-01"


class Hub:
    """A connection to one hub; close it with `aclose()` or use it as an async context."""

    def __init__(
        self,
        connection_string: Secret,
        *,
        ca_file: Path | None = None,
        budget: Budget | None = None,
        backoff: failing.Backoff | None = None,
        threads: int = 6,
        renewed: Callable[[], Secret] | None = None,
    ) -> None:
        """Reach a hub; `renewed` reads the connection string again when the hub refuses it."""
        self.host = sdk.host_of(connection_string)
        """Host name of the hub, with its port if the connection string has one."""
        if ca_file is not None and not ca_file.is_file():
            raise errors.KvedgeError(
                f"there is no file {str(ca_file)!r}",
                hint="name the file with the authority of the hub's certificate",
            )
        self.budget = budget or Budget()
        self._backoff = backoff or failing.Backoff()
        self._secret, self._ca_file, self._renewed = connection_string, ca_file, renewed
        self._protocol: Any = None
        self._opening = asyncio.Lock()
        self._threads = Threads(threads, f"hub-{self.host}")

    @classmethod
    def from_connection_string(
        cls,
        connection_string: Secret,
        *,
        ca_file: Path | None = None,
        budget: Budget | None = None,
        backoff: failing.Backoff | None = None,
        renewed: Callable[[], Secret] | None = None,
    ) -> Hub:
        """Return a hub from a service policy's connection string; nothing is sent yet.

        When the hub refuses it, `renewed` is asked for the one of that moment.

        Raises:
            SpecError: the connection string is incomplete.
        """
        return cls(
            connection_string, ca_file=ca_file, budget=budget, backoff=backoff, renewed=renewed
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close connections and threads; running requests are not waited for."""
        protocol, self._protocol = self._protocol, None
        self._threads.close()
        if protocol is not None:
            protocol.__exit__(None, None, None)

    # Identities

    async def get_device(self, device_id: str) -> DeviceIdentity:
        """Return a device's identity, keys included."""
        return await self._call(
            f"read device {device_id!r}", "registry",
            lambda p: p.devices.get_identity(device_id),
        )  # fmt: skip

    async def create_device(
        self, device_id: str, *, edge: bool = True, key: str = ""
    ) -> DeviceIdentity:
        """Create a device.

        Args:
            key: its primary key; without one the hub makes both keys.

        Raises:
            Conflict: the device exists.
        """

        def send(protocol: Any) -> Any:
            kinds = _models()
            # The hub takes both keys or none.
            pair = kinds.SymmetricKey(primary_key=key, secondary_key=_new_key()) if key else None
            body = kinds.Device(
                device_id=device_id,
                status="enabled",
                capabilities=kinds.DeviceCapabilities(iot_edge=edge),
                authentication=kinds.AuthenticationMechanism(type="sas", symmetric_key=pair),
            )
            return protocol.devices.create_or_update_identity(device_id, body)

        return await self._call(f"create device {device_id!r}", "registry", send, lane=Lane.BULK)

    async def ensure_device(
        self, device_id: str, *, owner: Mapping[str, str], tags: Mapping[str, Any] | None = None,
        key: str = "",
    ) -> DeviceIdentity:  # fmt: skip
        """Create an edge device with tags, or adopt it if it is ours or was half made.

        Args:
            device_id: the device.
            owner: members of `tags.kvedge` that tell whose it is.
            tags: the whole set of tags to write, `kvedge` included.
            key: the primary key that it shall have; without one, the hub's own is left alone.

        Raises:
            Conflict: the device exists and is somebody else's.
        """
        try:
            device = await self.create_device(device_id, key=key)
        except errors.Conflict:
            device = await self.get_device(device_id)
            await self._refuse_foreign(device, owner)
            found = (device.get("authentication", {}).get("symmetricKey") or {}).get("primaryKey")
            if key and found and found != key:
                device = await self.renew_device_key(device_id, old=found, fresh=key)
        if tags is not None:
            await self.update_twin(device_id, {"tags": dict(tags)})
        return device

    async def renew_device_key(
        self, device_id: str, *, old: str, fresh: str = ""
    ) -> DeviceIdentity:
        """Give a device a new primary key; the old one goes on as its secondary key.

        Args:
            old: the primary key that is to go; if the hub has another one, it was renewed already.
            fresh: the new key; without one it is drawn.

        Raises:
            NotFound: there is no such device.
            Conflict: the device changed meanwhile.
        """
        device = await self.get_device(device_id)
        key = device.get("authentication", {}).get("symmetricKey") or {}
        if key.get("primaryKey") != old:
            return device
        fresh = fresh or _new_key()

        def send(protocol: Any) -> Any:
            kinds = _models()
            body = kinds.Device(
                device_id=device_id,
                status=device.get("status", "enabled"),
                etag=device.get("etag"),
                device_scope=device.get("deviceScope"),
                parent_scopes=device.get("parentScopes"),
                capabilities=kinds.DeviceCapabilities(iot_edge=True),
                authentication=kinds.AuthenticationMechanism(
                    type="sas",
                    symmetric_key=kinds.SymmetricKey(primary_key=fresh, secondary_key=old),
                ),
            )
            etag = _quoted(device.get("etag", "*"))
            return protocol.devices.create_or_update_identity(device_id, body, etag)

        return await self._call(f"renew key of device {device_id!r}", "registry", send,
                                lane=Lane.BULK)  # fmt: skip

    async def _refuse_foreign(self, device: DeviceIdentity, owner: Mapping[str, str]) -> None:
        device_id = device["deviceId"]
        twin = await self.get_twin(device_id)
        mine = twin.get("tags", {}).get("kvedge") or {}
        fresh = not mine and str(device.get("lastActivityTime", _NEVER)).startswith(_NEVER)
        if fresh or (mine and all(mine.get(key) == value for key, value in owner.items())):
            if device.get("capabilities", {}).get("iotEdge"):
                return
            found = "it is not an edge device"
        else:
            found = f"it belongs to {mine}" if mine else "it was not made by kvedge"
        raise errors.Conflict(
            f"create device {device_id!r}", status=409, reason="DeviceAlreadyExists",
            details=found, hint="choose another name or remove that device from the hub",
        )  # fmt: skip

    async def delete_device(self, device_id: str, *, etag: str = "*") -> None:
        """Remove a device with its modules and twins.

        Raises:
            NotFound: there is no such device.
        """
        await self._call(
            f"delete device {device_id!r}", "registry",
            lambda p: p.devices.delete_identity(device_id, _quoted(etag)), lane=Lane.URGENT,
        )  # fmt: skip

    # Twins

    async def get_twin(self, device_id: str, module_id: str = "") -> Twin:
        """Return a device's twin, or a module's."""

        def send(protocol: Any) -> Any:
            if module_id:
                return protocol.modules.get_twin(device_id, module_id)
            return protocol.devices.get_twin(device_id)

        return await self._call(f"read twin {_named(device_id, module_id)}", "twins", send)

    async def update_twin(
        self, device_id: str, patch: Mapping[str, Any], module_id: str = "", *, etag: str = "*"
    ) -> Twin:
        """Merge tags and desired properties into a twin; a null removes a member.

        Args:
            device_id: the device.
            patch: `{"tags": {…}, "properties": {"desired": {…}}}`, either or both.
            module_id: the module whose twin is meant; none is the device's.
            etag: the twin's state that the change was made for.

        Raises:
            Conflict: the twin changed since the etag was read.
        """

        def send(protocol: Any) -> Any:
            kinds = _models()
            desired = patch.get("properties", {}).get("desired")
            body = kinds.Twin(
                tags=patch.get("tags"),
                properties=None if desired is None else kinds.TwinProperties(desired=desired),
            )
            if module_id:
                return protocol.modules.update_twin(device_id, module_id, body, _quoted(etag))
            return protocol.devices.update_twin(device_id, body, _quoted(etag))

        what = f"update twin {_named(device_id, module_id)}"
        return await self._call(what, "twins", send, lane=Lane.BULK)

    # Queries

    async def query(self, text: str, *, lane: Lane = Lane.STATUS) -> list[QueryRow]:
        """Return all rows of a query."""
        return [row async for page in self.query_pages(text, lane=lane) for row in page]

    async def query_pages(
        self, text: str, *, lane: Lane = Lane.STATUS, retry: bool = True
    ) -> AsyncIterator[list[QueryRow]]:
        """Yield a query's rows page by page; each page is one request.

        Who asks again by itself anyway sets `retry` to False and learns of an outage at once; a
        page that the hub refuses for their number is asked for again all the same.
        """
        token: str | None = None
        while True:
            rows, token = await self._call(
                "query the hub",
                "query",
                functools.partial(_query, text, token),
                lane=lane,
                retry=retry,
            )
            yield rows
            if not token:
                return

    async def statistics(self) -> dict[str, int]:
        """Return the hub's device counts (totalDeviceCount, enabledDeviceCount, …)."""
        return await self._call(
            "read the hub's statistics", "registry",
            lambda p: p.statistics.get_device_statistics(),
        )  # fmt: skip

    # Deployments

    async def configurations(
        self, *, lane: Lane = Lane.STATUS, retry: bool = True
    ) -> list[Configuration]:
        """Return all deployments and configurations of the hub."""
        return await self._call(
            "list deployments", "configurations",
            lambda p: p.configuration.get_configurations(), lane=lane, retry=retry,
        )  # fmt: skip

    async def get_configuration(self, configuration_id: str) -> Configuration:
        """Return one deployment."""
        return await self._call(
            f"read deployment {configuration_id!r}", "configurations",
            lambda p: p.configuration.get(configuration_id),
        )  # fmt: skip

    async def create_configuration(self, wanted: Configuration) -> Configuration:
        """Create a deployment.

        Raises:
            Conflict: the id is taken.
        """
        return await self._put(f"create deployment {wanted['id']!r}", wanted, None)

    async def update_configuration(self, wanted: Configuration) -> Configuration:
        """Write labels, metrics, priority and target condition of a deployment.

        The hub keeps the old content whatever is sent, so a changed content is refused here.

        Raises:
            Conflict: the deployment changed since `wanted["etag"]` was read.
            SpecError: the content differs from the hub's.
        """
        current = await self.get_configuration(wanted["id"])
        if current.get("content") != wanted.get("content"):
            problem = errors.Problem(
                path="content", message="the hub never changes the content of a deployment",
                hint="create a deployment with another id and a higher priority",
            )  # fmt: skip
            raise errors.SpecError(f"deployment {wanted['id']!r}", [problem])
        etag = wanted.get("etag") or current.get("etag") or "*"
        return await self._put(f"update deployment {wanted['id']!r}", wanted, etag)

    async def delete_configuration(self, configuration_id: str, *, etag: str = "*") -> None:
        """Remove a deployment; devices keep their modules if no base deployment is left.

        Raises:
            NotFound: there is no such deployment.
        """
        await self._call(
            f"delete deployment {configuration_id!r}", "configurations",
            lambda p: p.configuration.delete(configuration_id, _quoted(etag)), lane=Lane.URGENT,
        )  # fmt: skip

    async def _put(self, what: str, wanted: Configuration, etag: str | None) -> Configuration:
        def send(protocol: Any) -> Any:
            kinds = _models()
            metrics = wanted.get("metrics") or {}
            body = kinds.Configuration(
                id=wanted["id"],
                schema_version=wanted.get("schemaVersion", "2.0"),
                labels=wanted.get("labels"),
                content=kinds.ConfigurationContent(
                    modules_content=wanted.get("content", {}).get("modulesContent")
                ),
                target_condition=wanted.get("targetCondition", ""),
                priority=wanted.get("priority", 0),
                metrics=kinds.ConfigurationMetrics(queries=metrics.get("queries")),
            )
            return protocol.configuration.create_or_update(
                wanted["id"], body, if_match=_quoted(etag) if etag else None
            )

        return await self._call(what, "configurations", send, lane=Lane.BULK)

    # Direct methods

    async def invoke_method(
        self,
        device_id: str,
        method: str,
        payload: Any = None,
        *,
        module_id: str = "",
        response_seconds: int = 30,
        connect_seconds: int = 0,
    ) -> tuple[int, Any]:
        """Call a direct method and return the device's status and payload.

        Raises:
            NotFound: the device or module is not connected.
        """

        def send(protocol: Any) -> Any:
            body = _models().CloudToDeviceMethod(
                method_name=method,
                payload={} if payload is None else payload,
                response_timeout_in_seconds=response_seconds,
                connect_timeout_in_seconds=connect_seconds,
            )
            if module_id:
                return protocol.modules.invoke_method(device_id, module_id, body)
            return protocol.devices.invoke_method(device_id, body)

        what = f"call {method!r} on {_named(device_id, module_id)}"
        answer = await self._call(
            what, "methods", send, lane=Lane.URGENT, retry=False, retry_throttled=False
        )
        return int(answer.get("status", 0)), answer.get("payload")

    # Sending

    async def _call(
        self,
        what: str,
        kind: str,
        send: Callable[[Any], Any],
        *,
        lane: Lane = Lane.STATUS,
        retry: bool = True,
        retry_throttled: bool = True,
    ) -> Any:
        for attempt in range(self._backoff.tries):
            await self.budget.spend(kind, lane)
            try:
                return await self._once(what, send)
            except errors.RemoteError as error:
                last = attempt + 1 >= self._backoff.tries
                again = retry
                if isinstance(error, errors.Throttled):
                    self.budget.refused(kind)
                    again = retry_throttled
                if last or not again or not failing.retryable(error):
                    raise
                asked = error.retry_after if isinstance(error, errors.Throttled) else None
                await asyncio.sleep(asked or self._backoff.pause(attempt))
        raise AssertionError

    async def _once(self, what: str, send: Callable[[Any], Any]) -> Any:
        protocol = await self._open()
        try:
            return await self._threads.run(functools.partial(_run, what, send, protocol))
        except errors.Unauthorized:
            if not self._take_renewed(protocol):
                raise
        protocol = await self._open()
        return await self._threads.run(functools.partial(_run, what, send, protocol))

    async def _open(self) -> Any:
        async with self._opening:
            if self._protocol is None:
                connect = functools.partial(sdk.connect, self._secret, self._ca_file)
                protocol = await self._threads.run(connect)
                protocol.__enter__()  # keeps each thread's connection open
                self._protocol = protocol
            return self._protocol

    def _take_renewed(self, refused: Any) -> bool:
        """Forget a connection that the hub refuses; return whether there is another key to try."""
        if self._renewed is not None and self._protocol is refused:
            with contextlib.suppress(errors.KvedgeError):
                fresh = self._renewed()
                if fresh != self._secret and sdk.host_of(fresh) == self.host:
                    self._secret, self._protocol = fresh, None
        return self._protocol is not refused


def _run(what: str, send: Callable[[Any], Any], protocol: Any) -> Any:
    """Send one request on a thread of the pool and translate its failure."""
    from azure.core.exceptions import ClientAuthenticationError
    from msrest.exceptions import ClientException, HttpOperationError

    try:
        return send(protocol)
    except ClientAuthenticationError as cause:
        raise failing.error_from_sign_in(what, cause) from None
    except HttpOperationError as cause:
        raise failing.error_from_response(what, cause.response) from None
    except ClientException as cause:
        inner = getattr(cause, "inner_exception", None) or cause
        raise failing.error_from_transport(what, inner) from None


def _query(text: str, token: str | None, protocol: Any) -> tuple[list[Any], str | None]:
    answer = protocol.query.get_twins(
        _models().QuerySpecification(query=text), token, str(_PAGE), raw=True
    )
    return answer.output or [], answer.headers.get("x-ms-continuation")


def _models() -> Any:
    from azure.iot.hub.protocol import models

    return models


def _new_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


def _quoted(etag: str) -> str:
    """Return the etag as RFC 9110 writes it; the hub takes no bare one."""
    return etag if etag == "*" or etag.startswith('"') else f'"{etag}"'


def _named(device_id: str, module_id: str) -> str:
    return repr(f"{device_id}/{module_id}" if module_id else device_id)
