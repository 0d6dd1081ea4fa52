"""Filling disks: how often one that cannot be had is asked for."""

import asyncio
from types import SimpleNamespace

import pytest

from kvedge import errors
from kvedge.site.host.running import Crew
from kvedge.site.host.volumes import Volumes

LABELS = {"name": "p1-os", "namespace": "plant", "uid": "u1"}


class Cluster:
    """One DataVolume with a bound claim; each write of its status comes back as an event.

    Limits: knows only the requests of a disk that is never filled.
    """

    def __init__(self):
        storage = {"resources": {"requests": {"storage": "2Gi"}}}
        source = {"registry": {"url": "docker://registry/none@sha256:0"}}
        self.disk = {"metadata": LABELS, "spec": {"source": source, "storage": storage}}
        self.events = asyncio.Queue()
        self.tries = []

    async def watch(self, _path):
        yield "ADDED", self.disk
        while True:
            yield "MODIFIED", await self.events.get()

    async def get(self, path):
        assert path.endswith("/persistentvolumeclaims/p1-os")
        owner = {"uid": "u1"}
        return {"metadata": {"uid": "c1", "ownerReferences": [owner]}, "status": {"phase": "Bound"}}

    async def patch(self, _path, body):
        self.disk = {**self.disk, **body}
        self.events.put_nowait(self.disk)
        return self.disk

    async def event(self, _about, reason, _text):
        assert reason == "ImportFailed"

    async def disk_of(self, _url, **_more):
        self.tries.append(asyncio.get_running_loop().time())
        raise errors.SiteError("is not in the registry")


@pytest.mark.looptime
async def test_a_disk_that_cannot_be_had_is_asked_for_less_and_less_often(tmp_path):
    """Two seconds after the first failure, at last once a minute, though each failure is told."""
    cluster = Cluster()
    async with asyncio.TaskGroup() as group:
        volumes = Volumes(
            settings=SimpleNamespace(volumes=tmp_path),
            kube=cluster,
            crew=Crew(group),
            images=SimpleNamespace(disk=cluster.disk_of),
            writer=cluster,
        )
        watching = group.create_task(volumes.watch_data_volumes(), name="watch")
        await asyncio.sleep(400)
        watching.cancel()
        volumes._actors.discard("u1")
    pauses = [
        after - before for before, after in zip(cluster.tries, cluster.tries[1:], strict=False)
    ]
    assert pauses[:5] == [pytest.approx(wanted, abs=1) for wanted in (2, 4, 8, 16, 32)]
    assert pauses[5:] == [pytest.approx(60, abs=1)] * len(pauses[5:])
    assert cluster.disk["status"]["restartCount"] == len(cluster.tries)
