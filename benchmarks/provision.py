"""Objects of 100 VMs by kvedge and by kubectl: `make -s bench NAME=provision`.

Starts a site of its own, whose VM host is stopped (SIGSTOP) while it is measured, so that no guest
is started and no disk filled: only API server, admission, controllers, hub and the tools work.
kubectl applies the same manifests (`apply --server-side`) to another namespace of the same site.
The identities in the hub are made before and timed apart; `up` adopts them, which its time holds.
`vms100_again_s` is a run that has nothing to do, `engine_again_s` the same by the engine's preview,
which kvedge runs when it has no note of the last run. The `_cpu_s` keys hold user and system time of
the clients, which says more than the clock on a machine with other work.
KVEDGE_BENCH_VMS sets another number of VMs. Runs that are killed: tests/integration/infra.
"""

import asyncio
import json
import os
import pathlib
import shutil
import signal
import tempfile
import time

import _common
import yaml

from infra import access_keys, bringing, engine, guest, hub_content, manifests
from kvedge import iothub, processes, settings, tools
from kvedge.site import control

VMS = int(os.environ.get("KVEDGE_BENCH_VMS", "100"))
IMAGE = f"registry.kvedge.test/kvedge/none@sha256:{'0' * 64}"


def main():
    """Measure, then take the site away."""
    before = _common.machine()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kvedge-bench-"))
    try:
        site = control.up(folder / "site", "bench")
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
    access_keys.make_user_key(environment)
    figures = {"vms": VMS}
    _kubectl(folder, environment, figures)
    figures["identities_s"] = _identities(environment)
    run = engine.Engine("bench", project=engine.make_project(folder / "project", stacks=folder))
    run.prepare()
    environment = settings.parse("bench", run.settings(), environ=os.environ)

    def apply():
        return bringing.apply(run, environment, [], on_event=lambda _: None)

    figures["vms100_changes"] = _timed(figures, "vms100", apply)
    figures["vms100_again_changes"] = _timed(figures, "vms100_again", apply)
    by_engine = _timed(figures, "engine_again", lambda: run.up(on_event=lambda _: None))
    if by_engine != figures["vms100_again_changes"]:
        raise SystemExit(f"the engine finds {by_engine}, the note says otherwise: {figures}")
    for ours, theirs in (("vms100", "kubectl_apply"), ("vms100_again", "kubectl_again")):
        name = {"vms100": "vms100_of_kubectl", "vms100_again": "again_of_kubectl"}[ours]
        figures[name] = round(figures[f"{ours}_s"] / figures[f"{theirs}_s"], 2)
    return figures


def _timed(figures, name, work):
    """Return what the work returns, and keep its seconds by the clock and by the processor."""
    begun, used = time.monotonic(), _cpu()
    found = work()
    figures[f"{name}_s"] = round(time.monotonic() - begun, 2)
    figures[f"{name}_cpu_s"] = round(_cpu() - used, 2)
    return found


def _cpu():
    """Return user and system seconds of this process and of the children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _kubectl(folder, environment, figures):
    """Apply the same manifests to namespace `rival`, twice."""
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "rival"}},
        manifests.user_keys(environment, ["ssh-ed25519 AAAA bench"]),
    ]
    for vm in environment.fleet:
        keys = guest.host_key("rival", vm.name)
        files = guest.secret_disk(
            environment, vm, connection_string="HostName=h;DeviceId=d;SharedAccessKey=a2V5",
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
    words = [tools.path("kubectl"), "apply", "--server-side", "-f", file]
    for name in ("kubectl_apply", "kubectl_again"):
        _timed(figures, name, lambda: processes.run(words, what="kubectl apply"))


def _identities(environment):
    """Create the identities alone, by the same calls; the environment adopts them."""

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
    os.environ |= {
        **settings.read_variables(site.folder.env_file),
        "PATH": os.environ["PATH"],
        "KVEDGE_STATE": str(folder),
        "PULUMI_BACKEND_URL": f"file://{folder / 'pulumi'}",
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(folder / "passphrase"),
        "PULUMI_OPTION_CONFIG_FILE": str(folder / "stacks" / "Pulumi.bench.yaml"),
    }


def _host_pid(site):
    status = json.loads((site.folder.root / "run" / "status.json").read_text())
    return int(status["parts"]["host"]["pid"])


main()
