"""Images of registries in the cache, ready to be looked into and booted like built ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from images import cache, disk, oci, registry
from images.building import BuiltImage
from kvedge.progress import silent

if TYPE_CHECKING:
    from pathlib import Path

    from kvedge.progress import Progress

__all__ = ["pull"]

_DISK = "disk.qcow2"


def pull(
    reference: str,
    *,
    arch: str = "amd64",
    ca_file: Path | None = None,
    progress: Progress = silent,
    store: cache.Store | None = None,
) -> BuiltImage:
    """Pull an image with what is attached to it, or find it pulled; its disk is taken out.

    Args:
        reference: `host[:port]/repository`, with `:tag` or `@sha256:…`.
        arch: picked where the reference is of several images.
        ca_file: PEM of the authority that signed the registry's certificate; else the system's.
        progress: hears of each transfer.
        store: the cache.

    Raises:
        NotFound: the registry has no such image.
        RemoteError: it cannot be reached, refuses, or sends something else than it says.
    """
    store = store or cache.default_store()
    digest = registry.resolve(reference, arch=arch, ca_file=ca_file)
    where = registry.parse_reference(reference)
    pinned = f"{where.host}/{where.repository}@{digest}"

    def work(folder: Path) -> dict[str, Any]:
        layout = registry.pull(pinned, folder, arch=arch, ca_file=ca_file, progress=progress)
        if oci.disk_in(layout, folder / "disk.img"):
            disk.as_qcow2(folder / "disk.img", folder / _DISK)
        return {"reference": pinned}

    key = f"pulled-{digest.removeprefix('sha256:')[:32]}"
    entry = store.make(key, work)
    layout = oci.read_layout(entry.path)
    file = entry.path / _DISK
    return BuiltImage(
        name=pinned,
        key=key,
        digest=layout.digest,
        layout=layout.path,
        size=layout.size,
        disk=file if file.is_file() else None,
    )
