"""Objects of 100 VMs by kvedge and by kubectl: `make -s bench NAME=provision`.

Starts a site of its own, whose VM host is stopped (SIGSTOP) while it is measured, so that no guest
is started and no disk filled: only API server, admission, controllers, hub and the tools work.
kubectl applies the same manifests (`apply --server-side`) to another namespace of the same site.
"""

import asyncio
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

import _common
import yaml

from infra import engine, guest, manifests
from kvedge import iothub, processes, settings, tools
from kvedge.site import control

VMS = int(os.environ.get("KVEDGE_BENCH_VMS", "100"))
KILLS = int(os.environ.get("KVEDGE_BENCH_KILLS", "10"))
IMAGE = f"registry.kvedge.test/kvedge/none@sha256:{'0' * 64}"


def main():
    """Measure, then take the site away."""
    before = _common.machine()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kvedge-bench-"))
    site = control.up(folder / "site", "bench")
    try:
        _variables(site, folder)
        host = _host_pid(site)
        os.kill(host, signal.SIGSTOP)
        try:
            figures = _measure(folder)
        finally:
            os.kill(host, signal.SIGCONT)
    finally:
        control.down(folder / "site", purge=True)
        shutil.rmtree(folder, ignore_errors=True)
    _common.emit("provision", before, figures)


def _measure(folder):
    fleet = [{"name": f"v{number:03d}"} for number in range(VMS)]
    raw = {"image": {"reference": IMAGE}, "fleet": fleet}
    config = {f"kvedge:{key}": value for key, value in raw.items()}
    (folder / "Pulumi.bench.yaml").write_text(yaml.safe_dump({"config": config}))
    environment = settings.parse("bench", {**raw, "keySeed": "bench"}, environ=os.environ)
    figures = {"vms": VMS}
    figures["kubectl_apply_s"], figures["kubectl_again_s"] = _kubectl(folder, environment)
    figures["identities_s"] = _identities(environment)
    run = engine.Engine("bench", project=engine.make_project(folder / "project", stacks=folder))
    (folder / "keys").mkdir()
    (folder / "keys" / "id_ed25519.pub").write_text("ssh-ed25519 AAAA bench\n")
    run.prepare()
    for key in ("vms100_s", "vms100_again_s"):
        begun = time.monotonic()
        changes = run.up(on_event=lambda _: None)
        figures[key] = round(time.monotonic() - begun, 2)
        figures[f"{key[:-2]}_changes"] = changes
    figures["vms100_of_kubectl"] = round(figures["vms100_s"] / figures["kubectl_apply_s"], 2)
    figures["again_of_kubectl"] = round(figures["vms100_again_s"] / figures["kubectl_again_s"], 2)
    return {**figures, **_kills(run, environment, figures["vms100_s"])}


def _kills(run, environment, seconds):
    """Kill pulumi at random points of runs that begin with nothing; let the last one complete."""
    run.destroy(on_event=lambda _: None)
    for _ in range(KILLS):
        # A child of its own, as in a shell; the engine is the keeper's child below it.
        child = processes.popen(
            [sys.executable, "-c", _UP, str(run.project), str(run.source.parent)]
        )
        time.sleep(random.uniform(0.5, seconds))
        for pid in _below(child.pid):
            if _program(pid) == "pulumi":
                os.kill(pid, signal.SIGKILL)
        child.wait()
    run.up(on_event=lambda _: None)
    label = f"--selector=kvedge.io/environment={environment.name}"
    listed = processes.run(
        [tools.path("kubectl"), "get", "vm,dv,secret,service", label, "-o", "name"],
        what="count objects",
    ).stdout.split()
    devices = asyncio.run(_devices(environment))
    again = run.up(on_event=lambda _: None)
    return {
        "kills": KILLS,
        "objects_after_kills": len(listed),
        "objects_expected": 6 * VMS + 1,
        "devices_after_kills": devices,
        "changes_after_kills": {kind: n for kind, n in again.items() if kind != "same"},
    }


_UP = """
import pathlib, sys
from infra import engine
project = engine.Project(folder=pathlib.Path(sys.argv[1]), stacks=pathlib.Path(sys.argv[2]))
engine.Engine("bench", project=project).up(on_event=lambda _: None)
"""


def _below(pid):
    """Return ids of all processes below one."""
    found = []
    for entry in pathlib.Path("/proc").glob("[1-9]*/stat"):
        try:
            parent = int(entry.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == pid:
            found += [int(entry.parent.name), *_below(int(entry.parent.name))]
    return found


def _program(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


async def _devices(environment):
    async with iothub.Hub.from_connection_string(
        environment.hub.connection_string, ca_file=environment.hub.ca_file
    ) as hub:
        return len(await hub.query("SELECT deviceId FROM devices"))


def _kubectl(folder, environment):
    """Apply the same manifests to namespace `rival`, twice."""
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "rival"}},
        manifests.user_keys(environment, ["ssh-ed25519 AAAA bench"]),
    ]
    for vm in environment.fleet:
        keys = guest.host_key("rival", vm.name)
        files = guest.secret_disk(
            environment, vm, connection_string="HostName=h;DeviceId=d;SharedAccessKey=k",
            keys=keys, authorized_keys=["ssh-ed25519 AAAA bench"], trusted_ca="",
        )  # fmt: skip
        documents = {
            "userdata": guest.user_data(environment, vm),
            "networkdata": guest.network_data(environment, vm),
        }
        for name, content in (
            (manifests.edge_secret_name(vm), files),
            (manifests.cloudinit_secret_name(vm), documents),
        ):
            objects.append(manifests.secret(environment, vm, name, manifests.encoded(content)))
        objects += [
            manifests.os_disk(environment, vm, "0" * 12, f"docker://{IMAGE}"),
            manifests.data_disk(environment, vm),
            manifests.virtual_machine(environment, vm, "0" * 12, keys[1]),
            manifests.ssh_service(environment, vm),
        ]
    for obj in objects[1:]:
        obj["metadata"]["namespace"] = "rival"
    file = folder / "rival.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    times = []
    for _ in range(2):
        begun = time.monotonic()
        processes.run(
            [tools.path("kubectl"), "apply", "--server-side", "-f", file], what="kubectl apply"
        )
        times.append(round(time.monotonic() - begun, 2))
    return times


def _identities(environment):
    """Create the identities alone, by the same calls; the environment adopts them."""
    from infra import hub_content

    async def make():
        async with iothub.Hub.from_connection_string(
            environment.hub.connection_string, ca_file=environment.hub.ca_file,
            budget=iothub.Budget(iothub.UNLIMITED),
        ) as hub:  # fmt: skip
            for vm in environment.fleet:
                tags = hub_content.device_tags(environment, vm)
                owner = {"environment": environment.name}
                await hub.ensure_device(environment.device_id(vm), owner=owner, tags=tags)

    begun = time.monotonic()
    asyncio.run(make())
    return round(time.monotonic() - begun, 2)


def _variables(site, folder):
    """Take over the site's env file; state, keys and backend are the bench's own."""
    for line in site.folder.env_file.read_text().splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        if name.startswith(("KVEDGE_", "PULUMI_", "KUBECONFIG")):
            os.environ[name] = value.strip("'")
    os.environ["KVEDGE_STATE"] = str(folder)
    os.environ["PULUMI_OPTION_CONFIG_FILE"] = str(folder / "stacks" / "Pulumi.bench.yaml")


def _host_pid(site):
    status = json.loads((site.folder.root / "run" / "status.json").read_text())
    return int(status["parts"]["host"]["pid"])


main()
