"""The main job's times: `make -s bench NAME=demo`.

warm_s: tools and image are cached, no site runs. again_s: a second run at once, nothing to change.
cold_s: with --cold, from an empty cache folder (programs built from modules, image built).
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import _common

ROOT = pathlib.Path(__file__).parents[1]
DEADLINE = 60


def main():
    """Run the demo in a folder of its own and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cold", action="store_true", help="measure the cold run too (25 min)")
    wanted = parser.parse_args()
    before = _common.machine()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kvedge-bench-"))
    figures = {"cold_s": None}
    try:
        if wanted.cold:
            cache = folder / "cache"
            figures["cold_s"] = round(run(folder, {"KVEDGE_CACHE": str(cache)}), 1)
            kvedge(folder, "site", "down", "--purge", "dev")
        figures["warm_s"] = round(run(folder, {}), 1)
        figures["again_s"] = round(run(folder, {}), 1)
        figures["vm_apply_to_running_s"] = round(apply_to_running(folder), 2)
    finally:
        kvedge(folder, "site", "down", "--purge", "dev")
        shutil.rmtree(folder, ignore_errors=True)
    _common.emit("demo", before, figures)


def run(folder, env):
    """Run scripts/demo in the folder; return its seconds."""
    return _common.timed(
        [str(ROOT / "scripts/demo")], env={"KVEDGE_DEMO_FOLDER": str(folder), **env}
    )[0]


def kvedge(folder, *words):
    subprocess.run(
        [ROOT / ".venv/bin/kvedge", *words], cwd=folder, capture_output=True, check=False
    )


def apply_to_running(folder):
    """Return the seconds from applying a second VM (its disk is there) to its VMI Running."""
    site = folder / ".kvedge/dev"
    env = {**os.environ, "KUBECONFIG": str(site / "kubeconfig")}
    kubectl = [str(ROOT / ".venv/bin/python"), "-c",
               "from kvedge import tools; print(tools.path('kubectl'))"]  # fmt: skip
    program = subprocess.run(kubectl, capture_output=True, text=True, check=True).stdout.strip()

    def ask(*words, stdin=None):
        return subprocess.run(
            [program, *words], env=env, input=stdin, capture_output=True, text=True, check=True
        ).stdout

    vm = json.loads(ask("get", "vm", "edge1", "-o", "json"))
    spec = vm["spec"]
    template = spec["template"]["spec"]
    keep = {"os"}
    template["volumes"] = [
        {"name": "os", "dataVolume": {"name": "bench-os"}}
        for volume in template["volumes"]
        if volume["name"] in keep
    ]
    devices = template["domain"]["devices"]
    devices["disks"] = [disk for disk in devices["disks"] if disk["name"] in keep]
    for interface in devices["interfaces"]:
        interface.pop("macAddress", None)
    template["domain"].pop("firmware", None)
    template.pop("readinessProbe", None)
    source = json.loads(ask("get", "dv", "-l", "kvedge.io/vm=edge1", "-o", "json"))["items"]
    disk = next(item for item in source if "registry" in item["spec"].get("source", {}))
    ask("apply", "-f", "-", stdin=json.dumps({
        "apiVersion": disk["apiVersion"], "kind": "DataVolume",
        "metadata": {"name": "bench-os", "namespace": "default"}, "spec": disk["spec"],
    }))  # fmt: skip
    ask("wait", "dv/bench-os", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
    manifest = {
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": "bench", "namespace": "default"},
        "spec": {"runStrategy": spec["runStrategy"], "template": {"spec": template}},
    }  # fmt: skip
    began = time.perf_counter()
    ask("apply", "-f", "-", stdin=json.dumps(manifest))
    end = began + DEADLINE
    while time.perf_counter() < end:
        try:
            if ask("get", "vmi", "bench", "-o", "jsonpath={.status.phase}") == "Running":
                return time.perf_counter() - began
        except subprocess.CalledProcessError:
            pass
    raise SystemExit("the VMI did not run")


main()
