"""What is known of built images: for `kvedge image list` and `inspect`."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from images import building, cache, containers, locking, oci, recipe, scanning
from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["inspect", "overview", "packages_of", "scan", "schema"]


def _keys() -> dict[str, tuple[str, Callable[[], str]]]:
    """Return kind and way to the key by image name."""
    found: dict[str, tuple[str, Callable[[], str]]] = {
        name: ("disk", lambda name=name: building.key(name)) for name in recipe.names()
    }
    for name in containers.MODULES:
        found[name] = ("container", lambda name=name: containers.module_key(name))
    found["kvedge"] = ("container", containers.kvedge_image_key)
    return found


def overview() -> list[dict[str, Any]]:
    """Return one row an image: name, kind, key, built, size, digest."""
    store = cache.default_store()
    rows = []
    for name, (kind, key) in sorted(_keys().items()):
        entry = store.find(key())
        layout = oci.read_layout(entry.path) if entry else None
        rows.append(
            {
                "name": name,
                "kind": kind,
                "key": key(),
                "built": layout is not None,
                "size": layout.size if layout else 0,
                "digest": layout.digest if layout else "",
            }
        )
    return rows


def inspect(name: str) -> dict[str, Any]:
    """Return the facts of a built image.

    Raises:
        SpecError: there is no such image.
        KvedgeError: it is not built.
    """
    known = _keys()
    if name.endswith(".toml"):
        known[name] = ("disk", lambda: building.key(name))
    if name not in known:
        raise errors.SpecError(
            "image",
            [errors.Problem(path=name, message=f"no such image; there are {', '.join(known)}")],
        )
    kind, key = known[name][0], known[name][1]()
    store = cache.default_store()
    entry = store.find(key)
    if entry is None:
        raise errors.KvedgeError(f"image {name!r} is not built", hint=f"kvedge image build {name}")
    layout = oci.read_layout(entry.path)
    facts: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "key": key,
        "digest": layout.digest,
        "size": layout.size,
        "layout": str(layout.path),
        "attached": [
            {"digest": one["digest"], "type": one["artifactType"]} for one in layout.attached
        ],
        "layers": [
            {"digest": one["digest"], "size": one["size"], "type": one["mediaType"]}
            for one in layout.manifest["layers"]
        ],
    }
    if kind == "disk":
        plan = building.plan_of(recipe.load(name))
        below = store.find(plan.steps[-2].below)
        if below:
            with (below.path / "root.tar").open("rb") as stream:
                facts["packages"] = [dataclasses.asdict(one) for one in scanning.packages(stream)]
    return facts


def scan(recipe_name: str) -> list[errors.Problem]:
    """Return what must not be in a built disk, over its whole root file system.

    Raises:
        KvedgeError: it is not built.
    """
    with tempfile.TemporaryFile(dir=building.work_folder()) as file:
        building.write_tree(recipe_name, file)
        file.seek(0)
        return scanning.scan(file)


def packages_of(source: str) -> dict[str, str]:
    """Return versions by package: of a lock file (`….lock`) or of a built disk.

    Raises:
        KvedgeError: the image is not built, or there is no such file.
    """
    if source.endswith(".lock"):
        lock = locking.read(Path(source))
        if lock is None:
            raise errors.KvedgeError(f"lock {source!r} not found", hint="kvedge image lock")
        return dict(lock.packages)
    with _tree(source).open("rb") as stream:
        return {one.name: one.version for one in scanning.packages(stream)}


def _tree(recipe_name: str) -> Path:
    plan = building.plan_of(recipe.load(recipe_name))
    entry = cache.default_store().find(plan.steps[-2].below)
    if entry is None:
        raise errors.KvedgeError(
            f"image {recipe_name!r} is not built", hint=f"kvedge image build {recipe_name}"
        )
    return entry.path / "root.tar"


def schema(recipe_name: str) -> dict[str, Any]:
    """Return the cloud-config schema of a built disk's own cloud-init.

    Raises:
        KvedgeError: it is not built, or has no cloud-init.
    """
    with _tree(recipe_name).open("rb") as stream:
        return scanning.guest_schema(stream)
