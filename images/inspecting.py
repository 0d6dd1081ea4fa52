"""What is known of images: for `kvedge image list`, `inspect`, `check` and `diff`.

An image is named by its recipe or, when it was pulled, by its reference in a registry.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from images import (
    blocks,
    building,
    cache,
    containers,
    ext4,
    locking,
    oci,
    recipe,
    registry,
    scanning,
    trees,
)
from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "has_time_zone",
    "inspect",
    "overview",
    "packages_of",
    "scan",
    "scan_disk",
    "schema",
]


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
    """Return the facts of a built or pulled image.

    Raises:
        SpecError: there is no such image.
        KvedgeError: it is not built, or not pulled.
    """
    kind, entry = _entry(name)
    layout = oci.read_layout(entry.path)
    facts: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "key": entry.key,
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
        with _tree(name) as tree:
            facts["packages"] = [dataclasses.asdict(one) for one in scanning.packages(tree)]
    if kind == "disk" and not registry.is_reference(name):
        facts["stale"] = entry.facts.get("stale", [])
    return facts


def _entry(name: str) -> tuple[str, cache.Entry]:
    store = cache.default_store()
    if registry.is_reference(name):
        pulled = _pulled(name)
        return ("disk" if (pulled.path / "disk.qcow2").exists() else "container"), pulled
    known = _keys()
    stem = name.partition("@")[0]
    if name.endswith(".toml") or ".toml@" in name or (stem in recipe.names() and stem != name):
        known[name] = ("disk", lambda: building.key(name))
    if name not in known:
        raise errors.SpecError(
            "image",
            [errors.Problem(path=name, message=f"no such image; there are {', '.join(known)}")],
        )
    kind, key = known[name]
    entry = store.find(key())
    if entry is None:
        raise errors.KvedgeError(f"image {name!r} is not built", hint=f"kvedge image build {name}")
    return kind, entry


def _pulled(reference: str) -> cache.Entry:
    """Return the entry of a reference by digest, or the latest of one by tag; asks no network."""
    where = registry.parse_reference(reference)
    store = cache.default_store()
    prefix = f"{where.host}/{where.repository}@{where.digest}"
    found = [
        (used, entry)
        for entry, used in store.entries()
        if str(entry.facts.get("reference", "")).startswith(prefix)
    ]
    if not found:
        raise errors.KvedgeError(
            f"image {reference!r} is not pulled", hint=f"kvedge image pull {reference}"
        )
    return max(found, key=lambda pair: pair[0])[1]


@contextlib.contextmanager
def _tree(name: str) -> Iterator[trees.Tree]:
    """Open the packages' tree of a built disk, or the file system of a pulled one."""
    if registry.is_reference(name):
        with blocks.opened(_pulled(name).path / "disk.qcow2") as content:
            yield trees.DiskTree(ext4.FileSystem(content))
        return
    plan = building.plan_of(recipe.load(name))
    entry = cache.default_store().find(plan.steps[-2].below)
    if entry is None:
        raise errors.KvedgeError(f"image {name!r} is not built", hint=f"kvedge image build {name}")
    with (entry.path / "root.tar").open("rb") as stream:
        yield trees.TarTree(stream)


def scan(name: str) -> list[errors.Problem]:
    """Return what must not be in a built or pulled disk.

    Raises:
        KvedgeError: it is not built, not pulled, or no disk.
    """
    if registry.is_reference(name):
        return scan_disk(_pulled(name).path / "disk.qcow2")
    found = building.find(name)
    if found is None or found.disk is None:
        raise errors.KvedgeError(f"image {name!r} is not built", hint=f"kvedge image build {name}")
    return scan_disk(found.disk)


def scan_disk(file: Path) -> list[errors.Problem]:
    """Return what must not be in a disk, read from the very file that machines start from.

    Raises:
        KvedgeError: there is no such file, or its file system cannot be read.
    """
    if not file.is_file():
        raise errors.KvedgeError(f"no disk at {str(file)!r}", hint="only images of disks boot")
    with blocks.opened(file) as content:
        return scanning.scan(trees.DiskTree(ext4.FileSystem(content)))


def packages_of(source: str) -> dict[str, str]:
    """Return versions by package: of a lock file (`….lock`), or of a built or pulled disk.

    Raises:
        KvedgeError: the image is not built or pulled, or there is no such file.
    """
    if source.endswith(".lock"):
        lock = locking.read(Path(source))
        if lock is None:
            raise errors.KvedgeError(f"lock {source!r} not found", hint="kvedge image lock")
        return dict(lock.packages)
    with _tree(source) as tree:
        return {one.name: one.version for one in scanning.packages(tree)}


def has_time_zone(name: str, zone: str) -> bool:
    """Whether a disk knows a time zone; cloud-init fails on one that it does not.

    Raises:
        KvedgeError: it is not built or pulled.
    """
    with _tree(name) as tree:
        return tree.read(f"usr/share/zoneinfo/{zone}") is not None


def schema(name: str) -> dict[str, Any]:
    """Return the cloud-config schema of a disk's own cloud-init.

    Raises:
        KvedgeError: it is not built or pulled, or has no cloud-init.
    """
    with _tree(name) as tree:
        return scanning.guest_schema(tree)
