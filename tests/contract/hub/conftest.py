"""A hub to hold to the service's contract: the emulator, or a real one with --hub."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msrest.exceptions import HttpOperationError

from kvedge.emulator import Knobs
from kvedge.testing.hubs import hub_certificates, running_hub  # noqa: F401 - a fixture
from kvedge.testing.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


AWKWARD = Knobs(latency_seconds=0.002, query_lag_seconds=0.2)
EVALUATION_SECONDS = 0.2
"""The emulator is a little as a real hub is, so that no test relies on what only it can do."""
ONLY_EMULATED = {
    "turn": "a real hub has no knobs",
    "call": "raw requests go to the emulator: a real hub keeps authorities and enrollments elsewhere",
}
"""Fixtures that a real hub cannot serve, and why."""
_REAL_SECONDS = 1800
"""Time limit of a test on a real hub, which evaluates deployments every five minutes."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --hub, leave out the tests that only the emulator can serve, and give time."""
    if not config.getoption("--hub"):
        return
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    left_out = [item for item in here if _reason(item)]
    for item in here:
        item.add_marker(pytest.mark.timeout(_REAL_SECONDS), append=False)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    config.stash[_LEFT_OUT] = [(item.nodeid, _reason(item)) for item in left_out]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Tell which tests did not run on the real hub, and why."""
    if left_out := config.stash.get(_LEFT_OUT, []):
        terminalreporter.section("not run on the real hub")
        for name, reason in left_out:
            terminalreporter.line(f"{name}: {reason}")


_LEFT_OUT = pytest.StashKey[list[tuple[str, str]]]()


def _reason(item: pytest.Item) -> str:
    names = getattr(item, "fixturenames", ())
    return next((why for name, why in ONLY_EMULATED.items() if name in names), "")


class Patient:
    """A vendor's client that waits where a real hub throttles; by itself it gives up at once."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return functools.partial(self._call, found) if callable(found) else found

    @staticmethod
    def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        outcome: list[Any] = []

        def answered() -> bool:
            try:
                outcome.append(function(*args, **kwargs))
            except HttpOperationError as error:
                if error.response.status_code != 429:
                    raise
            return bool(outcome)

        until(answered, seconds=600, pause=10)
        return outcome[0]


@dataclasses.dataclass(kw_only=True)
class RealHub:
    """An Azure IoT Hub given by its service connection string."""

    connection_string: str

    @property
    def host(self) -> str:
        return dict(part.split("=", 1) for part in self.connection_string.split(";"))["HostName"]

    def registry_manager(self) -> Any:
        from azure.iot.hub import IoTHubRegistryManager

        return Patient(IoTHubRegistryManager.from_connection_string(self.connection_string))

    def configuration_manager(self) -> Any:
        from azure.iot.hub import IoTHubConfigurationManager

        return Patient(IoTHubConfigurationManager.from_connection_string(self.connection_string))

    def trusting(self, manager: Any) -> Any:
        return Patient(manager)

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
    with running_hub(
        None, hub_certificates, evaluation_seconds=EVALUATION_SECONDS, knobs=AWKWARD
    ) as running:
        yield running


@pytest.fixture
def call(hub: Any) -> Callable[..., tuple[int, Any]]:
    """Send a raw request, with all rights unless a token is given."""

    def send(method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        status, _, answer = hub.ask(method, path, body, token=token)
        return status, answer

    return send


@pytest.fixture
def turn(hub: Any) -> Iterator[Callable[..., None]]:
    """Turn knobs, all others being off; afterwards they are as before."""

    async def set_knobs(knobs: Knobs) -> None:
        hub.emulator.turn(knobs)

    yield lambda **knobs: hub.run(set_knobs(Knobs(**knobs)))
    hub.run(set_knobs(AWKWARD))


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
