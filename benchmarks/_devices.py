"""Simulated devices as a process of their own, for benchmarks.

Run as `_devices.py FOLDER MQTT_PORT DEVICES GROUPS`: device `g<group>-<number>` has the tag `group`.
Prints `connected`, then obeys lines of standard input: `report DEVICE MODULE STATUS`.
"""

import asyncio
import contextlib
import pathlib
import sys

import uvloop

from kvedge.emulator import simulation


async def run(folder, port, count, groups):
    """Run the devices until standard input ends."""
    devices = {}
    async with contextlib.AsyncExitStack() as stack:
        for group in range(groups):
            plan = simulation.Plan(
                connection_string=(folder / "service.connection").read_text(),
                mqtt=("127.0.0.1", port),
                host="hub.kvedge.test",
                ca=folder / "pki" / "ca.crt",
                devices=count // groups,
                prefix=f"g{group}",
                tags={"group": f"g{group}"},
            )
            made = await stack.enter_async_context(simulation.Simulation(plan))
            await made.connected()
            devices |= made.devices
        print("connected", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            _report, device, module, status = line.split()
            devices[device].override(module, runtimeStatus=status)


uvloop.run(run(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:5])))
