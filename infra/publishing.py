"""Building and pushing the images that an environment needs; the room's one way to `images`.

Each image has a key, known without building; the registry's tag is the key, so that an image which
is there already is found by one request.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

from kvedge import names
from kvedge.progress import Progress, silent

if TYPE_CHECKING:
    from kvedge import spec

__all__ = ["Builder", "Wanted", "builder", "wanted_images"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An image that an environment needs in its registry."""

    kind: str
    """`disk`, `module` or `connector`."""
    name: str
    """The recipe's or module's name."""
    repository: str
    """Path below the registry's host."""
    key: str
    """Changes if and only if the image does."""


class Builder(Protocol):
    """What knows how to key, build and push; tests put one of their own in."""

    def key(self, kind: str, name: str) -> str:
        """Return the image's key, without building."""
        ...

    def publish(self, wanted: Wanted, registry: spec.Registry, progress: Progress = silent) -> str:
        """Build if it is not cached, push if it is not there, and return the digest."""
        ...

    def remove(self, wanted: Wanted, registry: spec.Registry, digest: str) -> None:
        """Remove the image from the registry, if it is there."""
        ...


def builder() -> Builder:
    """Return the real builder; imports nothing heavy before it is used."""
    return _Images()


def wanted_images(environment: spec.Environment, by: Builder) -> list[Wanted]:
    """Return what must be built and pushed, the boot image first."""
    found: list[Wanted] = []

    def add(kind: str, name: str, repository: str) -> None:
        key = by.key(kind, name)
        found.append(Wanted(kind=kind, name=name, repository=repository, key=key))

    if not environment.image.reference:
        add("disk", environment.image.recipe, f"kvedge/{environment.image.recipe}")
    if environment.platform:
        for module in environment.platform.module_images:
            add("module", module, f"kvedge/{module}")
        if not environment.platform.connector.image:
            add("connector", "kvedge", names.CONNECTOR_IMAGE_NAME)
    return found


class _Images:
    """The workshop in `images`."""

    def key(self, kind: str, name: str) -> str:
        import images

        return images.key(name) if kind == "disk" else images.container_key(name)

    def publish(self, wanted: Wanted, registry: spec.Registry, progress: Progress = silent) -> str:
        import images

        make = images.build if wanted.kind == "disk" else images.build_container
        built = make(wanted.name, progress=progress)
        reference = images.push(
            built,
            f"{registry.push}/{wanted.repository}",
            ca_file=registry.ca_file,
            tag=tag(wanted),
            progress=progress,
        )
        return reference.rpartition("@")[2]

    def remove(self, wanted: Wanted, registry: spec.Registry, digest: str) -> None:
        import images

        images.remove(f"{registry.push}/{wanted.repository}@{digest}", ca_file=registry.ca_file)


def tag(wanted: Wanted) -> str:
    """Return the registry's tag of an image."""
    return wanted.key[:16]
