"""Loading the vendor's package and making one client of it.

azure-iot-hub 2.7.0 imports uamqp for cloud-to-device messages only, which kvedge does not send, and
uamqp has wheels for few platforms; it imports azure.core for Entra ID only, which is a third of its
time to import. Stand-ins take their places while the package is imported.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import importlib.util
import sys
import threading
import types
from typing import TYPE_CHECKING, Any

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvedge.redact import Secret

__all__ = ["connect", "host_of"]

_PARTS = ("HostName", "SharedAccessKeyName", "SharedAccessKey")
_LOADING = threading.Lock()
_ENTRA = "EntraId"
"""Value of `Authentication` in a connection string without a key."""
_FOR_ENTRA = {
    "azure.core.credentials": ("AccessToken",),
    "azure.core.pipeline": ("PipelineContext", "PipelineRequest"),
    "azure.core.pipeline.policies": ("BearerTokenCredentialPolicy",),
    "azure.core.pipeline.transport": ("HttpRequest",),
}
"""What the package takes from azure.core."""


def host_of(connection_string: Secret) -> str:
    """Return the hub's host name (with its port, if any) of a service connection string.

    `HostName=…;Authentication=EntraId` stands for a hub without a key.

    Raises:
        SpecError: a part is missing; the text itself is never shown.
    """
    fields = _fields(connection_string)
    needed = _PARTS[:1] if fields.get("Authentication") == _ENTRA else _PARTS
    problems = [
        errors.Problem(path=name, message="is missing") for name in needed if not fields.get(name)
    ]
    if "DeviceId" in fields:
        problems.append(
            errors.Problem(path="DeviceId", message="belongs to a device, not to a service policy")
        )
    try:
        base64.b64decode(fields.get("SharedAccessKey", ""), validate=True)
    except binascii.Error:
        problems.append(errors.Problem(path="SharedAccessKey", message="is not base64"))
    if problems:
        raise errors.SpecError(
            "the hub's connection string",
            problems,
            hint="copy it whole from the hub's shared access policies",
        )
    return fields["HostName"]


def connect(connection_string: Secret, ca_file: Path | None) -> Any:
    """Return the vendor's protocol client; its operations answer with plain JSON."""
    manager_class = _load().IoTHubConfigurationManager
    fields = _fields(connection_string)
    if fields.get("Authentication") == _ENTRA:
        credential = _credential()
        _complete()
        manager = manager_class.from_token_credential(fields["HostName"], credential)
    else:
        manager = manager_class.from_connection_string(connection_string.reveal().strip())
    protocol = manager.protocol
    # Our own pauses fit the hub; the package's swallow the status of a refused request.
    protocol.config.retry_policy.retries = 0
    if ca_file is not None:
        protocol.config.connection.verify = str(ca_file)
    for operations in (
        protocol.configuration, protocol.devices, protocol.modules, protocol.query,
        protocol.statistics,
    ):  # fmt: skip
        operations._deserialize = _json_of  # noqa: SLF001 - typed models cost more than the request
    return protocol


def _fields(connection_string: Secret) -> dict[str, str]:
    return dict(
        part.strip().split("=", 1)
        for part in connection_string.reveal().strip().split(";")
        if "=" in part
    )


def _credential() -> Any:
    """Return who this process is to Microsoft Entra ID: by environment, workload or `az login`."""
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError as cause:
        raise errors.ToolMissing(
            "azure-identity", "it signs in by Microsoft Entra ID",
            hint="pip install 'kvedge[azure]'",
        ) from cause  # fmt: skip
    return DefaultAzureCredential()


def _load() -> types.ModuleType:
    # Two threads that connect at once would see each other's stand-ins as the real modules.
    with _LOADING:
        stand_ins = {name: module for name, module in _stand_ins() if name not in sys.modules}
        sys.modules.update(stand_ins)
        try:
            import azure.iot.hub as package
        except ImportError as cause:
            raise errors.ToolMissing(
                "azure-iot-hub", f"the hub's client cannot be loaded: {cause}",
                hint="pip install azure-iot-hub==2.7.0 six",
            ) from cause  # fmt: skip
        finally:
            for name in stand_ins:
                del sys.modules[name]
        return package


def _stand_ins() -> Iterator[tuple[str, types.ModuleType]]:
    """Yield the modules that the package names while it is imported and never uses for us."""
    found = importlib.util.find_spec("azure.core")
    # The folder stays reachable: msrest takes its errors from azure.core.exceptions.
    core = list(found.submodule_search_locations or ()) if found else []
    members: dict[str, dict[str, Any]] = {
        "uamqp": {"TransportType": types.SimpleNamespace(Amqp=1, AmqpOverWebsocket=3)},
        "azure.core": {"__path__": core},
        **{name: dict.fromkeys(parts, object) for name, parts in _FOR_ENTRA.items()},
    }
    for name, content in members.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        yield name, module


def _complete() -> None:
    """Put the real parts of azure.core where the package found stand-ins."""
    from azure.iot.hub import auth

    for name, parts in _FOR_ENTRA.items():
        module = importlib.import_module(name)
        for part in parts:
            setattr(auth, part, getattr(module, part))


def _json_of(_kind: str, response: Any) -> Any:
    import orjson

    content = response.content
    return orjson.loads(content) if content else None
