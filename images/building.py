"""Running the steps of a plan: each is found in the cache or made there.

Needs mmdebstrap, GRUB's modules, dosfstools, mtools and qemu-utils; no root rights, no loop device.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from images import attesting, cache, content, disk, locking, oci, packaging, scanning, trees
from images import plan as planning
from images import recipe as recipes
from kvedge import errors, tools
from kvedge.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
]


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
        "root": functools.partial(packaging.make_root, plan, step, progress),
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
            hooks={name: (top / "hooks" / name).read_bytes() for name in packaging.HOOKS},
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
        return cache.sha256_file(packaging.local_package(name, Path(folder), epoch))


def _layer(
    plan: planning.Plan,
    step: planning.Step,
    store: cache.Store,
    progress: Progress,
    folder: Path,
) -> dict[str, Any]:
    below = _below(store, step) / "root.tar"
    return packaging.make_layer(plan, step, below, progress, folder)


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
    with packaging.workspace() as work:
        raw = work / "disk.raw"
        disk.make_raw(
            tree, raw, parts, on_bytes=lambda done: progress(task, done * 0.6, total, "file system")
        )
        progress(task, total * 0.6, total, "compress")
        disk.make_qcow2(raw, folder / "disk.qcow2")
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
