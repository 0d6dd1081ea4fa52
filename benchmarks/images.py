"""make -s bench NAME=images: building and booting the disk image (keys: docs/reference, DESIGN).

Everything is built in a cache of its own, so no earlier result helps. `--quick` boots once instead
of five times. The rivals are measured when they are installed, else their known figures are quoted.
"""

import argparse
import os
import pathlib
import resource
import shutil
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from _common import emit, machine, timed

_RIVALS = {
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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one boot instead of five")
    parser.add_argument("--no-boot", action="store_true", help="build only")
    options = parser.parse_args()
    before = machine()
    from kvedge import tools

    mke2fs = tools.ensure(["mke2fs"])["mke2fs"]
    with tempfile.TemporaryDirectory(prefix="kvedge-bench-", dir="/var/tmp") as name:
        folder = pathlib.Path(name)
        os.environ["KVEDGE_CACHE"] = str(folder / "cache")
        os.environ["PATH"] = f"{mke2fs.parent}:{os.environ['PATH']}"
        from images import building, cache
        from images import recipe as recipes

        recipe = recipes.load("debian-12-edge")
        plan = building.plan_of(recipe)
        store = cache.default_store()
        times = _step_times(plan, store)
        built = building.build(recipe.name)
        tar_to_disk = _raw_disk(plan, store, folder)
        second = cache.Store(folder / "second")
        second_times = _step_times(plan, second)
        again = building.build(recipe.name, store=second)
        hit = timed([sys.executable, "-c", "import images; images.build('debian-12-edge')"], runs=3)
        figures = {
            "cold_base_s": times["base"],
            "cold_base_again_s": second_times["base"],
            "engine_layer_s": times["engine"],
            "edge_layer_s": times["edge"],
            "extra_package_s": _extra_package(recipe, store),
            "tar_to_disk_s": tar_to_disk,
            "disk_and_compress_s": times["disk"],
            "oci_s": times["oci"],
            "cache_hit_s": round(min(_inside(building) for _ in range(3)), 3),
            "cache_hit_process_s": round(statistics.median(hit), 2),
            "reproducible": built.digest == again.digest,
            "base_bytes": _base_disk(recipe, store, folder),
            "engine_bytes": built.size,
            "peak_child_rss_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
            "cache_mib": sum(entry.size for entry, _ in store.entries()) >> 20,
        }
        if not options.no_boot:
            runs = 1 if options.quick else 5
            logins = [_login(built.disk, folder / f"boot{n}") for n in range(runs)]
            figures["boot_login_p50_s"] = round(statistics.median(logins), 1)
            figures["boot_login_all_s"] = [round(one, 1) for one in logins]
            figures["warm_login_s"] = round(_warm_login(built.disk, folder), 2)
        if shutil.which("virt-customize"):
            figures["virt_customize_extra_package_s"] = _virt_customize(built.disk, folder)
        emit("images", before, {**figures, "rivals": _RIVALS})


def _inside(building):
    return _clock(lambda: building.build("debian-12-edge"))[0]


def _virt_customize(disk, folder):
    copy = folder / "rival.qcow2"
    shutil.copyfile(disk, copy)
    return round(timed(["virt-customize", "-q", "-a", str(copy), "--install", "jq"])[0], 1)


if __name__ == "__main__":
    main()
