"""Larger data disks: asking the cluster for larger claims, whose guests see them after a restart.

A DataVolume cannot be changed, so its claim is; what it was grown to is noted on it. CDI makes a
claim larger than its disk by the file system's overhead, and that share is kept.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from infra import manifests
from kvedge import errors
from kvedge.quantity import parse_quantity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvedge import kube, spec

__all__ = ["Growth", "grow", "planned", "sizes_of"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """One claim that is to be larger."""

    path: str
    claim_size: str
    disk_size: str


def sizes_of(environment: spec.Environment) -> dict[str, str]:
    """Return the wanted size of each data disk by its name."""
    return {manifests.data_disk_name(vm): vm.data_disk for vm in environment.fleet}


async def planned(client: kube.Client, namespace: str, sizes: Mapping[str, str]) -> list[Growth]:
    """Return which claims are smaller than wanted; disks that are not there yet are left out.

    Raises:
        SpecError: a disk is larger already, and cannot shrink.
    """
    found: list[Growth] = []
    problems: list[errors.Problem] = []
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    volumes = f"/apis/cdi.kubevirt.io/v1beta1/namespaces/{namespace}/datavolumes"
    there = [
        {obj["metadata"]["name"]: obj for obj in (await client.get(path)).get("items") or ()}
        for path in (claims, volumes)
    ]
    for name, wanted in sizes.items():
        claim, volume = (listed.get(name) for listed in there)
        if claim is None or volume is None:
            continue
        noted = (claim["metadata"].get("annotations") or {}).get(manifests.ANNOTATION_DATA_DISK)
        now = noted or _storage(volume["spec"].get("storage") or volume["spec"]["pvc"])
        if parse_quantity(wanted) < parse_quantity(now):
            problems.append(
                errors.Problem(
                    path=f"data disk {name}", message=f"has {now} and cannot shrink to {wanted}",
                    hint=f"set dataDisk to {now}",
                )
            )  # fmt: skip
        elif parse_quantity(wanted) > parse_quantity(now):
            share = parse_quantity(_storage(claim["spec"])) / parse_quantity(now)
            mebibytes = math.ceil(parse_quantity(wanted) * share / 2**20)
            found.append(
                Growth(path=f"{claims}/{name}", claim_size=f"{mebibytes}Mi", disk_size=wanted)
            )
    if problems:
        raise errors.SpecError(
            "cannot change data disks", problems, hint="nothing has been changed"
        )
    return found


async def grow(client: kube.Client, namespace: str, sizes: Mapping[str, str]) -> None:
    """Ask for what is planned.

    Raises:
        SpecError: as `planned`.
        RemoteError: the storage class cannot grow volumes, in the API server's own words.
    """
    for one in await planned(client, namespace, sizes):
        wanted = {
            "metadata": {"annotations": {manifests.ANNOTATION_DATA_DISK: one.disk_size}},
            "spec": {"resources": {"requests": {"storage": one.claim_size}}},
        }
        await client.patch(one.path, wanted, "merge")


def _storage(spec: Mapping[str, Any]) -> str:
    return spec["resources"]["requests"]["storage"]
