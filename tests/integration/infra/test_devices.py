"""EdgeDevice on a running hub, called from four threads at once, as pulumi does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from infra.components.edge_device import EdgeDeviceProvider
from kvedge.testing.hubs import hub, hub_certificates  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from kvedge.testing.hubs import RunningHub

NOTHING = SimpleNamespace(config=SimpleNamespace(get=lambda _key: None))
"""A ConfigureRequest of a stack without settings: the variables say all."""


def props(name: str, environment: str = "plant") -> dict[str, Any]:
    """Return the inputs of a device."""
    owner = {
        "managed": True,
        "environment": environment,
        "cluster": "c",
        "namespace": "n",
        "vm": name,
    }
    return {
        "device_id": f"plant-{name}", "device_host": "hub.kvedge.test", "key_version": 1,
        "tags": {"kvedge": owner, "line": "press"}, "connection_string": None,
    }  # fmt: skip


@pytest.fixture
def provider(hub: RunningHub, monkeypatch: pytest.MonkeyPatch) -> EdgeDeviceProvider:  # noqa: F811
    """A provider as the engine configures it."""
    monkeypatch.setenv("KVEDGE_HUB_CONNECTION_STRING", hub.connection_string)
    monkeypatch.setenv("KVEDGE_HUB_CA_FILE", str(hub.ca))
    made = EdgeDeviceProvider()
    made.configure(NOTHING)  # type: ignore[arg-type]
    return made


def test_devices_are_made_once_however_often_they_are_asked_for(
    provider: EdgeDeviceProvider,
    hub: RunningHub,  # noqa: F811
) -> None:
    """A lost state is healed by the same calls: each device is adopted with its key."""
    wanted = [props(f"v{number}") for number in range(20)]
    with ThreadPoolExecutor(4) as four:
        first = list(four.map(provider.create, wanted))
        again = list(four.map(provider.create, wanted))
        assert [one.id for one in first] == [one["device_id"] for one in wanted]
        assert [one.outs for one in again] == [one.outs for one in first]
        assert not any(
            provider.diff(one.id, one.outs or {}, inputs).changes
            for one, inputs in zip(first, wanted, strict=True)
        )
        with pytest.raises(RuntimeError, match="plant-v0"):
            provider.create(props("v0", environment="other"))
        list(four.map(lambda one: provider.delete(one.id, one.outs or {}), first))
    assert hub.ask("GET", "/devices")[2] == []
