"""A hub to hold to the service's contract: the emulator, or a real one with --hub."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from typing import TYPE_CHECKING, Any

import pytest
from msrest.exceptions import HttpOperationError

from kvedge.testing.hubs import hub_certificates, running_hub  # noqa: F401 - a fixture
from kvedge.testing.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@dataclasses.dataclass(kw_only=True)
class RealHub:
    """An Azure IoT Hub given by its service connection string."""

    connection_string: str

    @property
    def host(self) -> str:
        return dict(part.split("=", 1) for part in self.connection_string.split(";"))["HostName"]

    def registry_manager(self) -> Any:
        from azure.iot.hub import IoTHubRegistryManager

        return IoTHubRegistryManager.from_connection_string(self.connection_string)

    def configuration_manager(self) -> Any:
        from azure.iot.hub import IoTHubConfigurationManager

        return IoTHubConfigurationManager.from_connection_string(self.connection_string)

    def trusting(self, manager: Any) -> Any:
        return manager

    def device_connection_string(self, device_id: str, key: str, module_id: str = "") -> str:
        module = f"ModuleId={module_id};" if module_id else ""
        return f"HostName={self.host};DeviceId={device_id};{module}SharedAccessKey={key}"

    def device_options(self, **more: Any) -> dict[str, Any]:
        return more


@pytest.fixture(scope="session")
def hub(
    real_hub: str | None,
    hub_certificates: tuple[Path, Path, Path],  # noqa: F811 - the fixture itself
) -> Iterator[Any]:
    """The hub under test, one for the whole session."""
    if real_hub:
        yield RealHub(connection_string=real_hub)
        return
    with running_hub(None, hub_certificates) as running:
        yield running


@pytest.fixture
def registry(hub: Any) -> Any:
    """The vendor's registry client."""
    return hub.registry_manager()


@pytest.fixture
def deployments(hub: Any) -> Any:
    """The vendor's configuration client."""
    return hub.configuration_manager()


@pytest.fixture
def new_id(registry: Any) -> Iterator[Callable[[], str]]:
    """Make device ids that nothing else uses; the devices are removed at the end."""
    made: list[str] = []

    def make() -> str:
        made.append(f"kvedge-{secrets.token_hex(6)}")
        return made[-1]

    yield make
    for device_id in made:
        with contextlib.suppress(HttpOperationError):  # most are gone already
            registry.delete_device(device_id, "*")


@pytest.fixture
def eventually(real_hub: str | None) -> Callable[..., Any]:
    """Poll a condition until it holds; a real hub evaluates deployments every five minutes."""

    def wait(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
        if real_hub:
            return until(condition, seconds=420, pause=5)
        return until(condition, seconds=seconds, pause=0.03)

    return wait
