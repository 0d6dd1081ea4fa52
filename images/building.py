"""Running the steps of a plan: each is found in the cache or made there.

Needs mmdebstrap, GRUB's modules, dosfstools, mtools and qemu-utils; no root rights, no loop device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.resources
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from images import attesting, cache, content, disk, locking, oci, scanning, sources, trees
from images import plan as planning
from images import recipe as recipes
from kvedge import errors, processes, tools
from kvedge.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from images.recipe import Recipe
    from kvedge.progress import Progress

__all__ = [
    "BuiltImage",
    "build",
    "build_base",
    "disk_plan",
    "find",
    "key",
    "make_step",
    "missing",
    "plan_of",
    "stale",
    "work_folder",
]

_HOOKS = ("container.sh", "customize.sh", "essential.sh", "layer.sh", "unpack.sh")
_WORKSPACE = "kvedge-build-"
_MERGED_USR = Path("/usr/share/mmdebstrap/hooks/merged-usr")
_TMPFS = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a folder of our own in it
_TMPFS_NEEDS = 3 << 30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """An image in the cache."""

    name: str
    key: str
    digest: str
    """Of its OCI manifest."""
    layout: Path
    size: int
    """Bytes that are pushed."""
    disk: Path | None = None
    """The qcow2 file, for a disk image."""


def key(recipe_name: str) -> str:
    """Return the key that the recipe's image has or will have; asks no network."""
    return plan_of(recipes.load(recipe_name)).key


def find(recipe_name: str) -> BuiltImage | None:
    """Return the recipe's image if it is built."""
    plan = plan_of(recipes.load(recipe_name))
    return _found(plan, cache.default_store())


def build(
    recipe_name: str, *, progress: Progress = silent, store: cache.Store | None = None
) -> BuiltImage:
    """Build a recipe's image, or find it built.

    Raises:
        SpecError: the recipe is wrong.
        ToolMissing: a program of the build is not there.
        BuildFailed: a program failed; its output's tail and the command are in the error.
    """
    store = store or cache.default_store()
    plan = plan_of(recipes.load(recipe_name))
    if found := _found(plan, store):
        return found
    tools.ensure(["mke2fs"], progress=progress)
    for step in missing(plan, store):
        make_step(plan, step, store, progress=progress)
    built = _found(plan, store)
    store.collect()
    if built is None:
        raise errors.KvedgeError(f"image {recipe_name!r} vanished from the cache")
    return built


def missing(plan: planning.Plan, store: cache.Store) -> list[planning.Step]:
    """Return the steps that have to be made, first to last.

    A result that is built upon is compared with its digest first, and forgotten if it is damaged.
    What lies below a result that is there is not needed.
    """
    *_, disk_step, last = plan.steps
    wanted = {disk_step.key, last.key}
    inputs: set[str] = set()
    found: list[planning.Step] = []
    for step in reversed(plan.steps):
        if step.key not in wanted:
            continue
        entry = store.find(step.key)
        if entry and step.key in inputs and not store.verify(entry):
            store.drop(step.key)
            entry = None
        if entry is None:
            found.append(step)
            # The image's documents list the packages, which are read out of the tree.
            used = {step.below, disk_step.below} if step is last else {step.below}
            inputs |= used
            wanted |= used
    return found[::-1]


def make_step(
    plan: planning.Plan, step: planning.Step, store: cache.Store, *, progress: Progress = silent
) -> cache.Entry:
    """Make one step of a plan, or find it made; the step below must be there."""
    works: dict[str, Callable[[Path], dict[str, Any]]] = {
        "root": functools.partial(_root, plan, step, progress),
        "layer": functools.partial(_layer, plan, step, store, progress),
        "disk": functools.partial(_disk, plan, step, store, progress),
        "oci": functools.partial(_oci, plan, step, store),
    }
    return store.make(step.key, works[step.kind])


def build_base(
    recipe_name: str, *, progress: Progress = silent, store: cache.Store | None = None
) -> cache.Entry:
    """Build the first layer of a recipe, a tar of a root file system, or find it built."""
    store = store or cache.default_store()
    plan = plan_of(recipes.load(recipe_name))
    return make_step(plan, plan.steps[0], store, progress=progress)


def plan_of(recipe: Recipe) -> planning.Plan:
    """Return the plan of a recipe with the shipped overlays, hooks and packages."""
    top = importlib.resources.files("images")
    wanted = {name for layer in recipe.layers for name in layer.local_packages}
    return planning.plan(
        recipe,
        planning.Assets(
            overlays=_overlays(recipe),
            hooks={name: (top / "hooks" / name).read_bytes() for name in _HOOKS},
            local_packages={name: _local_digest(name, recipe.epoch) for name in sorted(wanted)},
            debs=_debs(recipe),
        ),
    )


def _overlays(recipe: Recipe) -> dict[str, dict[str, bytes]]:
    return {name: content.overlay_files(name, recipe) for name in recipe.content.overlays}


def _debs(recipe: Recipe) -> dict[str, str]:
    found = {}
    for path in sorted({path for layer in recipe.layers for path in layer.debs}):
        file = recipe.place(path)
        if not file.is_file():
            problem = errors.Problem(path="layers.debs", message=f"no file {str(file)!r}")
            raise errors.SpecError(f"recipe {recipe.name!r}", [problem])
        found[path] = cache.sha256_file(file)
    return found


def _found(plan: planning.Plan, store: cache.Store) -> BuiltImage | None:
    image, raw = store.find(plan.steps[-1].key), store.find(plan.steps[-2].key)
    if image is None or raw is None:
        return None
    layout = oci.read_layout(image.path)
    return BuiltImage(
        name=plan.recipe.name,
        key=plan.key,
        digest=layout.digest,
        layout=layout.path,
        size=layout.size,
        disk=raw.path / "disk.qcow2",
    )


def _local_digest(name: str, epoch: int) -> str:
    with tempfile.TemporaryDirectory(prefix="kvedge-deb-") as folder:
        return cache.sha256_file(_local_package(name, Path(folder), epoch))


def _local_package(name: str, folder: Path, epoch: int) -> Path:
    from kvedge.edgesim import packing

    makers = {"edgesim": packing.build_deb}
    return makers[name](folder, source_date_epoch=epoch)


def _root(
    plan: planning.Plan, step: planning.Step, progress: Progress, folder: Path
) -> dict[str, Any]:
    assert step.layer is not None
    recipe = plan.recipe
    whole = recipe.kind == "disk"
    with _workspace() as work:
        hooks = work / "hooks"
        argv = [f"--include={','.join(step.layer.packages)}"]
        if whole:
            argv.append(f"--essential-hook={hooks / 'essential.sh'}")
            argv.append(f"--customize-hook={hooks / 'customize.sh'}")
        else:
            # The variant that unpacks without installing has no later hook.
            argv.append(f"--extract-hook={hooks / 'container.sh'}")
        if _MERGED_USR.is_dir():
            argv.append(f"--hook-dir={_MERGED_USR}")
        variant = "apt" if whole else "extract"
        _mmdebstrap(plan, step, variant, argv, folder / "root.tar", work, progress, env={})
    return {"layer": step.name}


def _layer(
    plan: planning.Plan,
    step: planning.Step,
    store: cache.Store,
    progress: Progress,
    folder: Path,
) -> dict[str, Any]:
    assert step.layer is not None
    with _workspace() as work:
        hooks = work / "hooks"
        debs = [_local_package(n, hooks, plan.recipe.epoch) for n in step.layer.local_packages]
        # Copied, because mmdebstrap's mapped users may not look into the recipe's folder.
        debs += [Path(shutil.copy(plan.recipe.place(path), hooks)) for path in step.layer.debs]
        argv = [
            "--skip=check/empty",
            f"--setup-hook={hooks / 'unpack.sh'}",
            f"--customize-hook={hooks / 'layer.sh'}",
            f"--customize-hook={hooks / 'customize.sh'}",
        ]
        env = {
            "KVEDGE_BASE": str(_below(store, step) / "root.tar"),
            "KVEDGE_PACKAGES": " ".join(step.layer.packages),
            "KVEDGE_DEBS": " ".join(str(deb) for deb in debs),
            "KVEDGE_STAMP": "tmp/.kvedge-stamp",
        }
        _mmdebstrap(plan, step, "custom", argv, folder / "root.tar", work, progress, env=env)
    return {"layer": step.name}


def _disk(
    plan: planning.Plan,
    step: planning.Step,
    store: cache.Store,
    progress: Progress,
    folder: Path,
) -> dict[str, Any]:
    tree = _below(store, step) / "root.tar"
    total = tree.stat().st_size
    task = f"image {plan.recipe.name}: disk"
    parts = disk_plan(plan)
    raw = folder / "disk.raw"
    disk.make_raw(
        tree, raw, parts, on_bytes=lambda done: progress(task, done * 0.6, total, "file system")
    )
    progress(task, total * 0.6, total, "compress")
    disk.make_qcow2(raw, folder / "disk.qcow2")
    raw.unlink()
    progress(task, total, total)
    return {"virtual_mib": plan.recipe.disk_mib}


def disk_plan(plan: planning.Plan) -> disk.DiskPlan:
    """Return what a plan's disk is made of beside the tree of packages."""
    return disk.DiskPlan(
        recipe=plan.recipe,
        identity=plan.identity,
        overlays=_overlays(plan.recipe),
    )


def _oci(
    plan: planning.Plan, step: planning.Step, store: cache.Store, folder: Path
) -> dict[str, Any]:
    labels = {
        "io.kvedge.key": step.key,
        "org.opencontainers.image.title": plan.recipe.name,
        "org.opencontainers.image.version": f"{plan.recipe.release}-{plan.recipe.revision}",
    }
    layout = oci.write_container_disk(
        _below(store, step) / "disk.qcow2",
        folder,
        arch=plan.recipe.arch,
        epoch=plan.recipe.epoch,
        labels=labels,
    )
    with _tree_below(plan, store).open("rb") as stream:
        packages = scanning.packages(trees.TarTree(stream))
    documents = {
        attesting.SPDX: attesting.spdx(plan, packages, digest=layout.digest),
        attesting.IN_TOTO: attesting.provenance(plan, packages, digest=layout.digest),
    }
    oci.attach(layout, documents, epoch=plan.recipe.epoch)
    return {
        "digest": layout.digest,
        "name": plan.recipe.name,
        "stale": [dataclasses.asdict(one) for one in stale(plan.recipe, packages)],
    }


def stale(recipe: Recipe, packages: Sequence[scanning.Package]) -> list[locking.Change]:
    """Return how an image's packages differ from its recipe's lock; kvedge's own do not count."""
    if recipe.lock is None:
        return []
    own = locking.own(recipe)
    found = {one.name: one.version for one in packages if one.name not in own}
    locked = {name: version for name, version in recipe.lock.packages if name not in own}
    return locking.compare(locked, found)


def _tree_below(plan: planning.Plan, store: cache.Store) -> Path:
    """Return the tar of all packages of an image, which its disk was made of."""
    return _below(store, plan.steps[-2]) / "root.tar"


def _below(store: cache.Store, step: planning.Step) -> Path:
    entry = store.find(step.below)
    if entry is None:
        raise errors.KvedgeError(
            f"image step {step.below!r} vanished from the cache during the build",
            hint="build again; a kvedge image gc may have run beside it",
        )
    return entry.path


@contextlib.contextmanager
def _workspace() -> Iterator[Path]:
    """Make a folder for one program's temporary files, with the hooks in it.

    mmdebstrap's mapped users read the hooks there. What a killed build left is taken away first:
    its folder's name holds the process and when that started.
    """
    top = work_folder()
    for stale in top.glob(f"{_WORKSPACE}*"):
        pid, _, started = stale.name.removeprefix(_WORKSPACE).rpartition(".")[0].partition("-")
        if pid.isdigit() and str(processes.start_time(int(pid))) != started:
            _remove(stale)
    mine = os.getpid()
    prefix = f"{_WORKSPACE}{mine}-{processes.start_time(mine)}."
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=top))
    try:
        # Mapped users of mmdebstrap make their tree in it.
        folder.chmod(0o1777)
        hooks = folder / "hooks"
        hooks.mkdir(mode=0o755)
        source = importlib.resources.files("images") / "hooks"
        for name in _HOOKS:
            (hooks / name).write_bytes((source / name).read_bytes())
            (hooks / name).chmod(0o755)
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists() and os.geteuid() != 0:
        # A killed mmdebstrap's tree belongs to the mapped users.
        processes.run(
            ["mmdebstrap", "--unshare-helper", "rm", "-rf", folder],
            what="take away what a killed build left", check=False,
        )  # fmt: skip


def work_folder() -> Path:
    """Return a folder for trees: memory where there is enough, which halves the time."""
    try:
        stat = os.statvfs(_TMPFS)
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return Path(tempfile.gettempdir())
    room = stat.f_bavail * stat.f_frsize
    enough = room > _TMPFS_NEEDS and available > _TMPFS_NEEDS and os.access(_TMPFS, os.W_OK)
    return _TMPFS if enough else Path(tempfile.gettempdir())


def _mmdebstrap(
    plan: planning.Plan,
    step: planning.Step,
    variant: str,
    extra: list[str],
    out: Path,
    work: Path,
    progress: Progress,
    *,
    env: dict[str, str],
) -> None:
    recipe = plan.recipe
    task = f"image {recipe.name}: {step.name}"
    seen = 0

    def on_line(line: str) -> None:
        nonlocal seen
        if line.startswith("I: ") or "Setting up" in line:
            seen += 1
            progress(task, seen, None, line.removeprefix("I: ")[:60])

    locked = []
    if recipe.lock:
        preferences = work / "kvedge-lock.pref"
        preferences.write_text(locking.preferences(recipe.lock))
        preferences.chmod(0o644)
        place = "etc/apt/preferences.d/kvedge-lock.pref"
        locked = [
            f'--setup-hook=mkdir -p "$1/etc/apt/preferences.d"; cp {preferences} "$1/{place}"',
            f'--customize-hook=rm -f "$1/{place}"',
        ]
    # Copied, because apt's and mmdebstrap's own users may not look into a home.
    archive_keys = Path(shutil.copy(sources.keyring(recipe), work))
    archive_keys.chmod(0o644)
    further = [one for one in recipe.sources if step.layer and one.name in step.layer.sources]
    vendor_lines = []
    for source in further:
        file = work / f"{source.name}.asc"
        file.write_bytes(sources.signing_key(source, recipe.place(source.key)))
        file.chmod(0o644)
        place = content.key_path(source)
        locked.append(f'--customize-hook=mkdir -p "$1/usr/share/keyrings"; cp {file} "$1/{place}"')
        vendor_lines.append(sources.vendor_line(source, recipe.arch, file))
    options = ['Acquire::Languages "none"', 'APT::Install-Recommends "false"']
    argv = [
        "mmdebstrap",
        f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
        f"--variant={variant}",
        f"--architectures={recipe.arch}",
        "--format=tar",
        *(f"--aptopt={one}" for one in [*options, *sources.apt_options()]),
        *locked,
        *extra,
        "",
        str(out),
        *sources.deb_lines(recipe, archive_keys, machine=sources.configured()),
        *vendor_lines,
    ]
    progress(task, 0, None, "packages")
    processes.run(
        argv,
        what=f"image {recipe.name!r}, layer {step.name!r}",
        env={
            "SOURCE_DATE_EPOCH": str(recipe.epoch),
            "INITRD": "No",
            "LC_ALL": "C.UTF-8",
            "TMPDIR": str(work),
            **env,
        },
        on_line=on_line,
        log=_log_file(recipe, step),
    )
    progress(task, max(seen, 1), max(seen, 1))


def _log_file(recipe: Recipe, step: planning.Step) -> Path:
    folder = tools.cache_dir() / "images" / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{recipe.name}-{step.name}.log"
    file.unlink(missing_ok=True)
    return file
