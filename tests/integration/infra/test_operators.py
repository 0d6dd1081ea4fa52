"""The operators' objects on a real API server, with nobody there to act on them but the test."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from infra import operators
from kvedge import errors, kube, processes, spec
from kvedge.testing.clusters import Cluster, running_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WANTED = spec.Operators()


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An API server that knows neither KubeVirt nor CDI."""
    with running_cluster(tmp_path_factory.mktemp("operators")) as running:
        yield running


async def path(client: kube.Client, part: str) -> str:
    obj = operators.controlled(WANTED, part)
    metadata = obj["metadata"]
    return await client.path_of(
        obj["apiVersion"], obj["kind"], metadata.get("namespace"), metadata["name"]
    )


async def conclude(client: kube.Client, condition: dict[str, str]) -> None:
    """Do what both operators do at the end: write a condition into the status.

    CDI's definition has no status subresource.
    """
    for part, subresource in (("kubevirt", "/status"), ("cdi", "")):
        body = {"status": {"conditions": [condition]}}
        while True:
            try:
                await client.patch(f"{await path(client, part)}{subresource}", body)
                break
            except errors.NotFound:
                await asyncio.sleep(0.1)


def run(cluster: Cluster, condition: dict[str, str], *, seconds: float = 60) -> list[str]:
    """Install while the operators' part is played."""

    async def both() -> list[str]:
        async with kube.Client(kube.load_config(cluster.kubeconfig)) as client:
            async with asyncio.TaskGroup() as group:
                group.create_task(conclude(client, condition), name="operators")
                found = group.create_task(
                    operators.install(client, WANTED, seconds=seconds), name="install"
                )
            return found.result()

    return asyncio.run(both())


def objects(cluster: Cluster) -> dict[str, Any]:
    """Return the resource version of each object that is applied."""

    async def read() -> dict[str, Any]:
        found = {}
        async with kube.Client(kube.load_config(cluster.kubeconfig)) as client:
            for part in operators.PARTS:
                for obj in operators.operator(WANTED, part):
                    metadata = obj["metadata"]
                    live = await client.get(
                        await client.path_of(
                            obj["apiVersion"], obj["kind"], metadata.get("namespace"),
                            metadata["name"],
                        )
                    )  # fmt: skip
                    found[f"{obj['kind']} {metadata['name']}"] = live["metadata"]["resourceVersion"]
        return found

    return asyncio.run(read())


def test_both_are_installed_and_a_second_run_changes_nothing(empty: Cluster) -> None:
    """Every object is taken by a real API server, strictly, and ends as it was given."""
    ready = {"type": "Available", "status": "True", "reason": "AllComponentsReady", "message": ""}
    failing = {"type": "Degraded", "status": "True", "reason": "Pulling", "message": "no image"}
    failures: list[BaseException] = []
    try:
        run(empty, failing, seconds=10)
    except* errors.KvedgeError as group:
        failures += group.exceptions
    assert "Pulling: no image" in str(failures[0])

    assert run(empty, ready) == ["kubevirt", "cdi"]
    first = objects(empty)
    assert len(first) > 15
    assert run(empty, ready) == ["kubevirt", "cdi"]
    assert objects(empty) == first

    newer = {"metadata": {"annotations": {"kvedge.io/operator-version": "v9.0.0"}}}
    foreign = {"metadata": {"labels": {"app.kubernetes.io/managed-by": "somebody"}}}

    async def change(body: Any) -> None:
        async with kube.Client(kube.load_config(empty.kubeconfig)) as client:
            await client.patch(await path(client, "cdi"), body)

    asyncio.run(change(newer))
    with pytest.raises(ExceptionGroup) as caught:
        run(empty, ready)
    assert "cdi v9.0.0 is on the cluster, newer than" in str(caught.value.exceptions[0])
    asyncio.run(change(foreign))
    assert run(empty, ready) == ["kubevirt"], "what somebody else put there is left alone"


def test_unknown_fields_are_refused(empty: Cluster) -> None:
    """The custom resources fit their real definitions: strict validation finds nothing to drop."""

    async def check() -> None:
        async with kube.Client(kube.load_config(empty.kubeconfig)) as client:
            for part in operators.PARTS:
                for obj in operators.operator(WANTED, part):
                    await client.apply(obj)
                wanted = operators.controlled(dataclasses.replace(WANTED, emulation=True), part)
                while True:
                    try:
                        where = await path(client, part)
                        break
                    except errors.NotFound:
                        await asyncio.sleep(0.1)
                query = {"fieldManager": "test", "force": True, "fieldValidation": "Strict"}
                await client.patch(where, wanted, "apply", dryRun="All", **query)
                wanted["spec"]["nonsense"] = True
                with pytest.raises(errors.RemoteError, match=r"nonsense|unknown field"):
                    await client.patch(where, wanted, "apply", dryRun="All", **query)

    asyncio.run(check())


def test_a_mirror_has_every_image() -> None:
    """No image of either operator comes from anywhere else, those that it starts later included."""
    mirror = spec.Operators(registry="registry.example.net/mirror")
    for part in operators.PARTS:
        text = json.dumps(operators.operator(mirror, part))
        assert "quay.io" not in text, part
        assert (
            f"registry.example.net/mirror/{'virt' if part == 'kubevirt' else 'cdi'}-operator:"
            in text
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_data_is_what_the_modules_say(tmp_path: Path) -> None:
    """`scripts/operators` writes the same bytes again; needs Go and its module proxy."""
    root = operators.__spec__.origin.rpartition("/infra/")[0]
    kept = f"{root}/infra/operators.json"
    before = tmp_path / "before.json"
    shutil.copy(kept, before)
    processes.run(
        [f"{root}/scripts/operators"], what="generate the operators' objects", timeout=800
    )
    with open(kept, encoding="utf-8") as file:
        assert file.read() == before.read_text(encoding="utf-8")
