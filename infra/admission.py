"""Whether the cluster would take an environment's objects, asked before the first one is made.

A preview by the engine asks as well, and costs as much as the run that follows it. Here the API
server is asked alone, by server-side dry runs, which pass through all admission, KubeVirt's own
included (https://kubernetes.io/docs/reference/using-api/api-concepts/#dry-run).
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import orjson

from infra import rendering
from kvedge import errors, names
from kvedge.redact import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
    known = dataclasses.replace(environment, key_seed=environment.key_seed or Secret("unknown"))
    objects = rendering.open_objects(known, rendering.facts_before(known, wanted))
    async with asyncio.TaskGroup() as group:
        for obj in asked_for(objects):
            group.create_task(ask(obj), name=f"admission of {obj['metadata']['name']}")
    if refused:
        lines = sorted(refused)
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise errors.KvedgeError(
            f"the cluster refuses objects of environment {environment.name!r}\n"
            + "\n".join(f"  {line}" for line in [*lines[:_SHOWN], *more]),
            hint="nothing has been made; mend the cause and run the same again",
        )


def asked_for(objects: Iterable[KubeObject]) -> Sequence[KubeObject]:
    """Return every VM, and one of those other objects that differ in names and secret values only.

    No two VMs are alike: firmware, addresses and device are a VM's own.
    """
    found: dict[bytes, KubeObject] = {}
    for obj in objects:
        found.setdefault(orjson.dumps(_form(obj), option=orjson.OPT_SORT_KEYS), obj)
    return list(found.values())


def _form(obj: KubeObject) -> dict[str, Any]:
    if obj["kind"] == "VirtualMachine":
        return dict(obj)
    form: dict[str, Any] = {k: v for k, v in obj.items() if k not in ("metadata", "data")}
    form["data"] = sorted(obj.get("data") or ())
    metadata = dict(obj["metadata"])
    del metadata["name"]
    metadata["labels"] = {k: v for k, v in metadata["labels"].items() if k != names.LABEL_VM}
    form["metadata"] = metadata
    if obj["kind"] == "Service":
        form["spec"] = {k: v for k, v in obj["spec"].items() if k != "selector"}
    return form
