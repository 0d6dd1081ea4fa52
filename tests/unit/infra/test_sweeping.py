"""What a sweep takes from the hub: the platform's own base and layers, nobody else's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra import hub_content, sweeping
from kvedge import edge

if TYPE_CHECKING:
    from kvedge import spec


class Hub:
    """A hub of a few rows; limits: knows only what a sweep asks."""

    def __init__(self, rows: list[Any], configurations: list[Any]) -> None:
        self.rows, self.found = rows, configurations
        self.gone: list[str] = []

    async def query(self, _text: str, **_: Any) -> list[Any]:
        """Return all rows."""
        return self.rows

    async def configurations(self, **_: Any) -> list[Any]:
        """Return all deployments."""
        return self.found

    async def delete_device(self, device_id: str) -> None:
        """Note it."""
        self.gone.append(device_id)

    async def delete_configuration(self, name: str) -> None:
        """Note it."""
        self.gone.append(name)


async def test_only_what_is_ours_goes(environment: spec.Environment) -> None:
    """Devices by tag, the base by owner, layers by cluster and node."""

    def row(name: str, **tags: str) -> dict[str, Any]:
        return {"deviceId": name, "tags": {"kvedge": {"managed": True, **tags}}}

    layer = {edge.LABEL_CLUSTER: "cluster-1", edge.LABEL_NODE: "iot-edge-connector"}
    hub = Hub(
        [
            row("plant-edge1", environment="plant", cluster="cluster-1"),
            row("plant-far", environment="plant", cluster="cluster-2"),
            row("other", environment="other", cluster="cluster-1"),
        ],
        [
            hub_content.base_configuration(environment),
            {"id": "layer", "labels": layer},
            {"id": "layer-of-another-node", "labels": {**layer, edge.LABEL_NODE: "vn2"}},
            {"id": "somebody-else", "labels": {}},
        ],
    )
    await sweeping._hub(environment, hub)  # type: ignore[arg-type]
    base = hub_content.base_configuration(environment)["id"]
    assert hub.gone == ["plant-edge1", base, "layer"]
