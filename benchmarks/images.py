"""make -s bench NAME=images: building and booting the disk image (keys: DESIGN).

Built is in a cold cache folder of its own under /var/tmp, booted what is in the user's cache.
`--only KEY` runs no more than that key needs; with more of them, or none, all share their results.
Rivals do the same work where they are installed; else their key says why not, and what was measured
elsewhere.
"""

import argparse
import contextlib
import dataclasses
import functools
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

from _common import emit, machine, timed

# This file has the name of the package that it measures.
sys.path.remove(str(pathlib.Path(__file__).resolve().parent))

_NAME = "debian-12-edge"
_EXTRA = "jq"
_MKOSI = {
    "not_run": "Debian 12 has mkosi 14, which wants loop devices, vfat in the kernel and nspawn",
    "quoted_s": "100-112 (mkosi 25.3 in a Debian 13 root on Debian 12, two cores, TCG)",
}
_STOCK = {"not_run": "no stock cloud image in Debian's packages", "quoted_s": "27-31"}


def _clock(work):
    began = time.perf_counter()
    work()
    return round(time.perf_counter() - began, 2)


class _Peak(threading.Thread):
    """The most MiB that files of a folder and of the memory file system take, sampled."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self._folder = folder
        self._before = shutil.disk_usage("/dev/shm").used
        self._ended = threading.Event()
        self.disk_mib = self.memory_mib = 0

    def run(self):
        while not self._ended.wait(0.25):
            # Files come and go while they are counted.
            with contextlib.suppress(OSError):
                kept = sum(file.lstat().st_blocks * 512 for file in self._folder.rglob("*"))
                self.disk_mib = max(self.disk_mib, kept >> 20)
            used = shutil.disk_usage("/dev/shm").used - self._before
            self.memory_mib = max(self.memory_mib, used >> 20)

    def end(self):
        self._ended.set()
        self.join()


class _Workshop:
    """Builds in a cold cache; what several keys need is done once."""

    def __init__(self, folder):
        from images import building, cache, recipe

        self.folder = folder
        self.recipe = recipe.load(_NAME)
        self.plan = building.plan_of(self.recipe)
        self.store = cache.default_store()

    @functools.cached_property
    def steps(self):
        """Seconds of each step of a build from nothing, and its peaks."""
        from images import building

        peak = _Peak(self.folder)
        peak.start()
        make = functools.partial(building.make_step, self.plan, store=self.store)
        times = {step.name: _clock(functools.partial(make, step)) for step in self.plan.steps}
        peak.end()
        return times, peak

    def step(self, name):
        return self.steps[0][name]

    @functools.cached_property
    def base(self):
        """Seconds of the base layer, from the packages on; nothing else is built."""
        from images import building

        if "steps" in self.__dict__:
            return self.step("base")
        return _clock(lambda: building.make_step(self.plan, self.plan.steps[0], self.store))

    @functools.cached_property
    def built(self):
        from images import building

        assert self.steps
        return building.build(_NAME)

    def changed(self, *layers):
        """The plan of the recipe with its base layer and others."""
        from images import building

        return building.plan_of(
            dataclasses.replace(self.recipe, layers=(self.recipe.layers[0], *layers))
        )

    def extra_package(self):
        from images import building, recipe

        assert self.base
        plan = self.changed(recipe.Layer(name="extra", packages=(_EXTRA,)))
        return _clock(lambda: building.make_step(plan, plan.steps[1], self.store))

    def disk(self, plan, step):
        """Seconds from a tree to a bootable raw disk, best of three; bytes when compressed."""
        from images import building, disk, packaging

        tree, parts = self.store.find(step.key).path / "root.tar", building.disk_plan(plan)
        with packaging.workspace() as work:
            raw, small = work / "bench.raw", work / "bench.qcow2"
            took = min(_clock(lambda: disk.make_raw(tree, raw, parts)) for _ in range(3))
            disk.make_qcow2(raw, small)
            return took, small.stat().st_size

    @functools.cached_property
    def base_disk(self):
        assert self.base
        plan = self.changed()
        return self.disk(plan, plan.steps[0])

    @functools.cached_property
    def whole_disk(self):
        assert self.built
        return self.disk(self.plan, self.plan.steps[-3])

    def again(self):
        """Whether a second build from nothing, in another folder, has the same digest."""
        from images import building, cache

        store = cache.Store(self.folder / "second")
        return building.build(_NAME, store=store).digest == self.built.digest

    def hit(self):
        from images import building

        assert self.built
        return min(_clock(lambda: building.build(_NAME)) for _ in range(3))

    def hit_process(self):
        assert self.built
        argv = [sys.executable, "-m", "kvedge", "image", "build", _NAME, "-o", "json"]
        return round(statistics.median(timed(argv, runs=3)), 2)

    def scan(self):
        from images import inspecting

        return min(_clock(lambda: inspecting.scan_disk(self.built.disk)) for _ in range(3))

    def child_rss_mib(self):
        """The most memory that one program of a build had, trees in memory not counted."""
        assert self.built
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024

    def virt_customize(self):
        """Time the extra package, with the image's own kernel if this machine has none."""
        if not shutil.which("virt-customize"):
            return {"not_run": "apt-get install libguestfs-tools", "quoted_s": 38}
        copy = self.folder / "rival.qcow2"
        shutil.copyfile(self.built.disk, copy)
        environment = {"LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}
        if not any(pathlib.Path("/boot").glob("vmlinuz-*")):
            if not pathlib.Path("/lib/modules").is_dir():
                return {"not_run": "libguestfs wants a folder: mkdir /lib/modules", "quoted_s": 38}
            environment |= self._appliance_kernel()
        argv = ["virt-customize", "-q", "-a", copy, "--install", _EXTRA]
        try:
            return round(timed(argv, env=environment)[0], 1)
        except SystemExit as error:
            return {"failed": str(error), "quoted_s": 38}

    def _appliance_kernel(self):
        tree = self.store.find(self.plan.steps[0].key).path / "root.tar"
        root = self.folder / "kernel"
        root.mkdir()
        argv = ["tar", "-xf", tree, "-C", root, "./boot", "./usr/lib/modules"]
        subprocess.run(argv, check=True)
        modules = next((root / "usr/lib/modules").iterdir())
        return {
            "SUPERMIN_KERNEL": str(root / "boot" / f"vmlinuz-{modules.name}"),
            "SUPERMIN_MODULES": str(modules),
        }


class _Boots:
    """Boots the image of the user's cache, built if need be."""

    def __init__(self, folder, runs):
        self.folder = folder
        self.runs = runs

    @functools.cached_property
    def image(self):
        import images

        return images.build(_NAME).disk

    def login(self, folder, **options):
        from images import booting

        with booting.boot(self.image, folder, **options) as guest:
            client = guest.login(deadline=600)
            guest.run(client, "true")
            took = time.monotonic() - guest.started
            client.close()
        return took

    @functools.cached_property
    def logins(self):
        found = [self.login(self.folder / f"boot{number}") for number in range(self.runs)]
        return [round(one, 1) for one in found]

    def warm(self):
        """Save a running guest, start it again from the snapshot, and time that login."""
        from images import booting

        keys, run = booting.make_keys(), self.folder / "warm"
        with booting.boot(self.image, run, keys=keys, keep=True) as guest:
            client = guest.login(deadline=600)
            state = guest.run(client, "systemctl is-system-running --wait", timeout=600)
            assert state == (0, "running\n"), state
            client.close()
            guest.save()
        found = [self.login(run, keys=keys, load=True) for _ in range(min(3, self.runs))]
        return round(statistics.median(found), 2)


_KEYS = {
    "cold_base_s": lambda _, shop: shop.base,
    "extra_package_s": lambda _, shop: shop.extra_package(),
    "base_tar_to_disk_s": lambda _, shop: shop.base_disk[0],
    "base_bytes": lambda _, shop: shop.base_disk[1],
    "engine_layer_s": lambda _, shop: shop.step("engine"),
    "edge_layer_s": lambda _, shop: shop.step("edge"),
    "disk_and_compress_s": lambda _, shop: shop.step("disk"),
    "oci_s": lambda _, shop: shop.step("oci"),
    "peak_cache_mib": lambda _, shop: shop.steps[1].disk_mib,
    "peak_trees_in_memory_mib": lambda _, shop: shop.steps[1].memory_mib,
    "peak_child_rss_mib": lambda _, shop: shop.child_rss_mib(),
    "tar_to_disk_s": lambda _, shop: shop.whole_disk[0],
    "engine_bytes": lambda _, shop: shop.built.size,
    "cache_hit_s": lambda _, shop: shop.hit(),
    "cache_hit_process_s": lambda _, shop: shop.hit_process(),
    "scan_s": lambda _, shop: shop.scan(),
    "reproducible": lambda _, shop: shop.again(),
    "boot_login_p50_s": lambda boots, _: round(statistics.median(boots.logins), 1),
    "boot_login_all_s": lambda boots, _: boots.logins,
    "warm_login_s": lambda boots, _: boots.warm(),
    "stock_image_login_s": lambda *_: _STOCK,
    "virt_customize_extra_package_s": lambda _, shop: shop.virt_customize(),
    "mkosi_cold_s": lambda *_: _MKOSI,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=_KEYS, metavar="KEY",
                        help=f"any of: {', '.join(_KEYS)}")  # fmt: skip
    parser.add_argument("--runs", type=int, default=5, help="cold boots")
    options = parser.parse_args()
    before = machine()
    from kvedge import tools

    mke2fs = tools.ensure(["mke2fs"])["mke2fs"]
    with tempfile.TemporaryDirectory(prefix="kvedge-bench-", dir="/var/tmp") as name:
        folder = pathlib.Path(name)
        boots = _Boots(folder, options.runs)
        wanted = options.only or _KEYS
        # Looked up before the cache is changed for a cold one.
        if {"boot_login_p50_s", "boot_login_all_s", "warm_login_s"} & set(wanted):
            assert boots.image
        os.environ["KVEDGE_CACHE"] = str(folder / "cache")
        os.environ["PATH"] = f"{mke2fs.parent}:{os.environ['PATH']}"
        shop = _Workshop(folder)
        figures = {}
        for key, measure in _KEYS.items():
            if key in wanted:
                print(key, file=sys.stderr, flush=True)
                figures[key] = measure(boots, shop)
        emit("images", before, figures)


if __name__ == "__main__":
    main()
