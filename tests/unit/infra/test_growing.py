"""Data disks grow with their claims' overhead, and never shrink."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import growing
from kvedge import errors
from kvedge.quantity import parse_quantity


class Cluster:
    """One claim, as CDI makes it for a DataVolume. Limits: knows only this one."""

    def __init__(self, disk: str, overhead: float) -> None:
        self.volume = {
            "metadata": {"name": "p1-data"},
            "spec": {"storage": {"resources": {"requests": {"storage": disk}}}},
        }
        size = str(int(parse_quantity(disk) * int(1000 + overhead * 1000) / 1000))
        self.claim: dict[str, Any] = {
            "metadata": {"name": "p1-data"},
            "spec": {"resources": {"requests": {"storage": size}}},
        }  # fmt: skip
        self.patches = 0

    async def get(self, path: str) -> Any:
        return {"items": [self.volume if path.endswith("/datavolumes") else self.claim]}

    async def patch(self, path: str, body: Any, kind: str) -> None:
        assert path == "/api/v1/namespaces/edge/persistentvolumeclaims/p1-data"
        self.patches += 1
        self.claim["metadata"]["annotations"] = body["metadata"]["annotations"]
        self.claim["spec"] = body["spec"]

    def size(self) -> int:
        return int(parse_quantity(self.claim["spec"]["resources"]["requests"]["storage"]))


async def grow(cluster: Cluster, size: str) -> None:
    """Grow the disk, and one that is not there yet."""
    await growing.grow(cluster, "edge", {"p1-data": size, "new-data": size})  # type: ignore[arg-type]


@given(overhead=st.sampled_from([0.0, 0.055, 0.06, 0.1]), steps=st.lists(st.integers(4, 400)))
async def test_a_claim_follows_its_disk(overhead: float, steps: list[int]) -> None:
    """Each step keeps the overhead, the same size is no change, a smaller one is refused."""
    cluster = Cluster("4Gi", overhead)
    now = 4
    for step in steps:
        before = cluster.patches
        if step < now:
            with pytest.raises(
                errors.SpecError, match=f"has {now}Gi and cannot shrink to {step}Gi"
            ):
                await grow(cluster, f"{step}Gi")
            assert cluster.patches == before
            continue
        await grow(cluster, f"{step}Gi")
        assert cluster.patches == before + (step > now)
        now = step
        wanted = now * 2**30 * (1 + overhead)
        assert wanted - 2**20 <= cluster.size() <= wanted * 1.01 + len(steps) * 2**20
