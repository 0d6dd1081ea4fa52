"""KubeVirt's and CDI's kinds on a bare API server, for what reads them.

Limits: no schema, no admission, no controllers: objects stay as the test writes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvedge import errors
from kvedge.testing.waiting import until_async

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvedge import kube

__all__ = ["definition", "install"]


def definition(
    group: str, version: str, kind: str, plural: str, *, namespaced: bool = True
) -> dict[str, Any]:
    """Return a CustomResourceDefinition that takes anything."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced" if namespaced else "Cluster",
            "names": {"kind": kind, "plural": plural},
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


async def install(client: kube.Client, definitions: Sequence[dict[str, Any]]) -> None:
    """Apply definitions and wait until the API server serves their kinds."""
    for one in definitions:
        await client.apply(one)

    async def served() -> bool:
        try:
            for one in definitions:
                group, version = one["spec"]["group"], one["spec"]["versions"][0]["name"]
                await client.get(f"/apis/{group}/{version}/{one['spec']['names']['plural']}")
        except errors.NotFound:
            return False
        return True

    await until_async(served, "all kinds are served")
