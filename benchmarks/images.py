"""make -s bench NAME=images: building and booting the disk image (keys: docs/reference, DESIGN).

Three parts, all by default: `build` in a cache of its own, so that no earlier result helps; `boot` of
the image in the user's cache, five times and once from a snapshot; `rivals` that are installed, on
the same work. Figures of rivals that are not installed are quoted from facts that were measured.
"""

import argparse
import contextlib
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from _common import emit, machine, timed

_NAME = "debian-12-edge"
_QUOTED = {
    "mkosi_cold_s": "100-112 (25.3 on Debian 12, two cores)",
    "virt_customize_extra_package_s": 38,
    "stock_image_login_s": "27-31",
}
_WARM = "ready"


def _clock(work):
    began = time.perf_counter()
    value = work()
    return round(time.perf_counter() - began, 2), value


def _step_times(plan, store):
    """Build step by step; return the wall time of each kind and layer."""
    from images import building

    times = {}
    for step in plan.steps:
        times[step.name], _ = _clock(lambda s=step: building.make_step(plan, s, store))
    return times


def _extra_package(recipe, store):
    """Time one small package on top of the cached base."""
    import dataclasses

    from images import building
    from images import recipe as recipes

    layers = (recipe.layers[0], recipes.Layer(name="extra", packages=("jq",)))
    plan = building.plan_of(dataclasses.replace(recipe, layers=layers))
    return _clock(lambda: building.make_step(plan, plan.steps[1], store))[0]


def _raw_disk(plan, store, folder):
    """Time tree -> bootable raw disk, without the compression of the qcow2 file."""
    from images import building, disk

    tree = store.find(plan.steps[-2].below).path / "root.tar"
    return _clock(lambda: disk.make_raw(tree, folder / "disk.raw", building.disk_plan(plan)))[0]


def _base_disk(recipe, store, folder):
    """Return the bytes of a compressed disk of the base layer alone."""
    import dataclasses

    from images import building, disk

    plan = building.plan_of(dataclasses.replace(recipe, layers=recipe.layers[:1]))
    tree = store.find(plan.steps[0].key).path / "root.tar"
    raw = folder / "base.raw"
    disk.make_raw(tree, raw, building.disk_plan(plan))
    disk.make_qcow2(raw, folder / "base.qcow2")
    return (folder / "base.qcow2").stat().st_size


def _login(disk, folder, **options):
    from images import booting

    with booting.boot(disk, folder, **options) as guest:
        client = guest.login(deadline=600)
        guest.run(client, "true")
        took = time.monotonic() - guest.started
        client.close()
    return took


def _warm_login(disk, folder):
    """Save a running guest, start it again from the snapshot, and time that login."""
    from images import booting

    keys = booting.make_keys()
    run = folder / "warm"
    with booting.boot(disk, run, keys=keys) as guest:
        client = guest.login(deadline=600)
        guest.run(client, "systemctl is-system-running --wait", timeout=600)
        client.close()
        guest.save(_WARM)
    return _login(disk, run, keys=keys, load=_WARM)


class _Peak:
    """The most that the build's files take together, sampled while it runs."""

    def __init__(self, folder):
        self._folder = folder
        self._begun = shutil.disk_usage("/dev/shm").used
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.mib = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *unused):
        self._ended.set()
        self._thread.join()

    def _sample(self):
        while not self._ended.wait(0.25):
            kept = 0
            # Files come and go while they are counted.
            with contextlib.suppress(OSError):
                kept = sum(file.lstat().st_blocks * 512 for file in self._folder.rglob("*"))
            trees = shutil.disk_usage("/dev/shm").used - self._begun
            self.mib = max(self.mib, (kept + max(0, trees)) >> 20)


def _build_part(folder, *, twice):
    from images import building, cache
    from images import recipe as recipes

    recipe = recipes.load(_NAME)
    plan = building.plan_of(recipe)
    store = cache.default_store()
    with _Peak(folder) as peak:
        times = _step_times(plan, store)
    built = building.build(recipe.name)
    hit = timed([sys.executable, "-c", f"import images; images.build({_NAME!r})"], runs=3)
    figures = {
        "cold_base_s": times["base"],
        "engine_layer_s": times["engine"],
        "edge_layer_s": times["edge"],
        "extra_package_s": _extra_package(recipe, store),
        "tar_to_disk_s": _raw_disk(plan, store, folder),
        "disk_and_compress_s": times["disk"],
        "oci_s": times["oci"],
        "cache_hit_s": round(min(_inside(building) for _ in range(3)), 3),
        "cache_hit_process_s": round(statistics.median(hit), 2),
        "scan_s": _scan(built),
        "base_bytes": _base_disk(recipe, store, folder),
        "engine_bytes": built.size,
        "peak_child_rss_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "peak_disk_mib": peak.mib,
        "cache_mib": sum(entry.size for entry, _ in store.entries()) >> 20,
    }
    if twice:
        second = cache.Store(folder / "second")
        figures["cold_base_again_s"] = _step_times(plan, second)["base"]
        again = building.build(recipe.name, store=second)
        figures["reproducible"] = built.digest == again.digest
    return figures


def _scan(built):
    from images import inspecting

    return min(_clock(lambda: inspecting.scan_disk(built.disk))[0] for _ in range(3))


def _boot_part(folder, runs):
    import images

    disk = images.build(_NAME).disk
    logins = [_login(disk, folder / f"boot{number}") for number in range(runs)]
    return {
        "boot_login_p50_s": round(statistics.median(logins), 1),
        "boot_login_all_s": [round(one, 1) for one in logins],
        "warm_login_s": round(_warm_login(disk, folder), 2),
    }


def _rivals_part(folder):
    import images

    built = images.build(_NAME)
    figures = dict(_QUOTED)
    if shutil.which("virt-customize"):
        figures["virt_customize_extra_package_s"] = _virt_customize(built, folder)
    return {"rivals": figures}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=["build", "boot", "rivals"])
    parser.add_argument("--runs", type=int, default=5, help="cold boots")
    parser.add_argument("--once", action="store_true", help="no second build to compare")
    options = parser.parse_args()
    parts = options.part or ["build", "boot", "rivals"]
    before = machine()
    from kvedge import tools

    mke2fs = tools.ensure(["mke2fs"])["mke2fs"]
    figures = {}
    with tempfile.TemporaryDirectory(prefix="kvedge-bench-", dir="/var/tmp") as name:
        folder = pathlib.Path(name)
        if "boot" in parts:
            figures |= _boot_part(folder, options.runs)
        if "rivals" in parts:
            figures |= _rivals_part(folder)
        if "build" in parts:
            os.environ["KVEDGE_CACHE"] = str(folder / "cache")
            os.environ["PATH"] = f"{mke2fs.parent}:{os.environ['PATH']}"
            figures |= _build_part(folder, twice=not options.once)
        emit("images", before, figures)


def _inside(building):
    return _clock(lambda: building.build(_NAME))[0]


def _virt_customize(built, folder):
    """Time one small package, with the image's own kernel for the appliance if the host has none."""
    copy = folder / "rival.qcow2"
    shutil.copyfile(built.disk, copy)
    environment = {"LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}
    if not any(pathlib.Path("/boot").glob("vmlinuz-*")):
        environment |= _appliance_kernel(built, folder)
    os.environ.update(environment)
    argv = ["virt-customize", "-q", "-a", str(copy), "--install", "jq"]
    try:
        return round(timed(argv)[0], 1)
    except SystemExit as error:
        return f"failed: {error}"


def _appliance_kernel(built, folder):
    from images import building, cache
    from images import recipe as recipes

    tree = cache.default_store().find(building.plan_of(recipes.load(built.name)).steps[0].key)
    root = folder / "kernel"
    root.mkdir()
    argv = ["tar", "-xf", tree.path / "root.tar", "-C", root, "./boot", "./usr/lib/modules"]
    subprocess.run(argv, check=True)
    modules = next((root / "usr/lib/modules").iterdir())
    kernel = root / "boot" / f"vmlinuz-{modules.name}"
    return {"SUPERMIN_KERNEL": str(kernel), "SUPERMIN_MODULES": str(modules)}


if __name__ == "__main__":
    main()
