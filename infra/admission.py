"""Whether the cluster would take an environment's objects, asked before the first one is made.

A preview by the engine asks as well, and costs as much as the run that follows it. Here the API
server is asked alone, by server-side dry runs, which pass through all admission, KubeVirt's own
included (https://kubernetes.io/docs/reference/using-api/api-concepts/#dry-run).
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

import orjson

from infra import rendering
from kvedge import errors
from kvedge.redact import Secret

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from infra import publishing
    from kvedge import kube, spec
    from kvedge.wire import KubeObject

__all__ = ["admit", "asked_for"]

_AT_ONCE = 8
_SHOWN = 10


async def admit(
    client: kube.Client, environment: spec.Environment, wanted: Iterable[publishing.Wanted]
) -> None:
    """Find out whether the API server takes the objects; nothing is made.

    Args:
        wanted: the images that the run pushes.

    Raises:
        KvedgeError: it refuses some, and which, in its own words.
    """
    refused: list[str] = []
    slots = asyncio.Semaphore(_AT_ONCE)

    async def ask(obj: KubeObject) -> None:
        async with slots:
            try:
                await client.apply(obj, dry_run=True)
            except errors.RemoteError as cause:
                found = cause.message.partition(": ")[2]
                refused.append(f"{obj['kind']} {obj['metadata']['name']}: {found}")

    # What the run learns is not judged: the host key is text of an annotation.
    known = dataclasses.replace(
        environment,
        key_seed=environment.key_seed or Secret("unknown"),
        fleet=asked_for(environment.fleet, there=await _there(client, environment)),
    )
    async with asyncio.TaskGroup() as group:
        for obj in rendering.open_objects(known, rendering.facts_before(known, wanted)):
            group.create_task(ask(obj), name=f"admission of {obj['metadata']['name']}")
    if refused:
        lines = sorted(refused)
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise errors.KvedgeError(
            f"the cluster refuses objects of environment {environment.name!r}\n"
            + "\n".join(f"  {line}" for line in [*lines[:_SHOWN], *more]),
            hint="nothing has been made; of VMs with the same settings one was tried; "
            "mend the cause and run the same again",
        )


def asked_for(fleet: Iterable[spec.Vm], *, there: Container[str] = ()) -> tuple[spec.Vm, ...]:
    """Return one VM of each form, the one with the longest name, and those that are there.

    VMs of one form differ in what the settings have judged already, or what only the hub gets.

    Args:
        there: names of VMs that the cluster has, which may be somebody else's.
    """
    forms: dict[bytes, list[spec.Vm]] = {}
    for vm in fleet:
        form = dataclasses.replace(vm, name="", mac="", tags={}, key_version=1)
        key = orjson.dumps(form, option=orjson.OPT_SORT_KEYS)
        forms.setdefault(key, []).append(vm)
    longest = {max(vms, key=lambda vm: len(vm.name)).name for vms in forms.values()}
    return tuple(
        vm for vms in forms.values() for vm in vms if vm.name in longest or vm.name in there
    )


async def _there(client: kube.Client, environment: spec.Environment) -> set[str]:
    path = f"/apis/kubevirt.io/v1/namespaces/{environment.cluster.namespace}/virtualmachines"
    try:
        found = await client.get(path)
    except errors.NotFound:
        # A cluster without KubeVirt says so when it is asked about a VM.
        return set()
    return {obj["metadata"]["name"] for obj in found["items"]}
