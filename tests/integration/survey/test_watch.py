"""`kvedge status --watch` tells each change once and ends with an interrupt."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

from kvedge import processes
from kvedge.testing import kinds
from kvedge.testing.waiting import until_async


async def test_changes_are_told_as_they_come(good, cluster, tmp_path):
    """A new VM shows up; looks without a change print nothing."""
    names = (("VirtualMachine", "virtualmachines"),
             ("VirtualMachineInstance", "virtualmachineinstances"))  # fmt: skip
    await kinds.install(good, [kinds.definition("kubevirt.io", "v1", *one) for one in names])
    log = tmp_path / "log"
    argv = [sys.executable, "-m", "kvedge", "status", "--watch", "--interval", "0.5",
            "-o", "json", "--kubeconfig", cluster.kubeconfig]  # fmt: skip
    child = processes.popen(argv, log=log, cwd=tmp_path)

    def told():
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        return [{vm["name"] for vm in line["vms"]} for line in lines]

    try:
        await until_async(told, "the first look", seconds=60)
        vm = {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachine",
            "metadata": {
                "name": "late",
                "namespace": "default",
                "labels": {"app.kubernetes.io/managed-by": "kvedge"},
            },
            "spec": {},
        }
        before = len(told())
        await good.apply(vm)
        await until_async(lambda: len(told()) > before and told()[-1] >= {"late"}, seconds=60)
        assert len(told()) == before + 1
        await good.delete("/apis/kubevirt.io/v1/namespaces/default/virtualmachines/late")
        await until_async(lambda: len(told()) > before + 1, seconds=60)
        os.killpg(child.pid, signal.SIGINT)
        assert await asyncio.to_thread(child.wait, 30) == 130
    finally:
        child.kill()
        child.wait()
