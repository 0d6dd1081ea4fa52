"""The workshop: a recipe becomes a reproducible bootable disk image, and that a containerDisk.

Also makes the project's container images without a container engine. Knows nothing of clusters,
hubs or Pulumi.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from images import registry
from images.building import BuiltImage, build, find, key
from images.containers import build_kvedge_image, build_module, kvedge_image_key, module_key
from kvedge.progress import silent

if TYPE_CHECKING:
    from pathlib import Path

    from kvedge.progress import Progress

__all__ = [
    "BuiltImage",
    "build",
    "build_kvedge_image",
    "build_module",
    "find",
    "key",
    "kvedge_image_key",
    "module_key",
    "push",
]


def push(
    built: BuiltImage,
    destination: str,
    *,
    ca_file: Path | None = None,
    tag: str = "",
    progress: Progress = silent,
) -> str:
    """Push a built image and return it as `host/repository@sha256:…`; see `images.registry`."""
    return registry.push(built.layout, destination, ca_file=ca_file, tag=tag, progress=progress)
