"""Building and pushing the images that an environment needs; the room's one way to `images`.

Each image has a key, known without building; the registry's tag is the key, so that an image which
is there already is found by one request.
"""

from __future__ import annotations

import dataclasses
import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Protocol

import kvedge
from kvedge import errors, names
from kvedge.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvedge import spec

__all__ = ["Builder", "Wanted", "builder", "check_registry", "published", "tag", "wanted_images"]

_MODULE_TAG = "1.0"
"""Of the module images that are shipped; manifests name it."""


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

    def build(self, wanted: Wanted, progress: Progress = silent) -> Any:
        """Build the image into the cache, if it is not there."""
        ...

    def schema(self, image: str) -> Mapping[str, Any] | None:
        """Return the schema of a built or pulled image's cloud-init; None if it is not at hand."""
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
        from images import containers

        if kind == "disk":
            return images.key(name)
        return containers.module_key(name) if kind == "module" else containers.kvedge_image_key()

    def build(self, wanted: Wanted, progress: Progress = silent) -> Any:
        import images
        from images import containers

        if wanted.kind == "disk":
            return images.build(wanted.name, progress=progress)
        if wanted.kind == "module":
            return containers.build_module(wanted.name, progress=progress)
        return containers.build_kvedge_image(progress=progress)

    def schema(self, image: str) -> Mapping[str, Any] | None:
        from images import inspecting

        try:
            return inspecting.schema(image)
        except errors.KvedgeError:
            return None

    def publish(self, wanted: Wanted, registry: spec.Registry, progress: Progress = silent) -> str:
        import images

        reference = images.push(
            self.build(wanted, progress),
            f"{registry.push}/{wanted.repository}",
            ca_file=registry.ca_file,
            tag=tag(wanted),
            progress=progress,
        )
        return reference.rpartition("@")[2]

    def remove(self, wanted: Wanted, registry: spec.Registry, digest: str) -> None:
        digest = _delete_manifest(registry, wanted.repository, digest or tag(wanted))
        if digest:
            # What refers to the image (its bill of materials) is tagged by the image's digest.
            _delete_manifest(registry, wanted.repository, digest.replace(":", "-"))


def tag(wanted: Wanted) -> str:
    """Return the registry's tag: what people write for modules, else the key."""
    if wanted.kind == "module":
        return _MODULE_TAG
    return kvedge.__version__ if wanted.kind == "connector" else wanted.key[-32:]


def check_registry(registry: spec.Registry) -> None:
    """Find out whether the registry answers.

    Raises:
        RemoteError: it does not, or not with a certificate that is trusted.
    """
    _request(registry, "GET", "/v2/")


def published(wanted: Wanted, registry: spec.Registry) -> str:
    """Return an image's reference by digest, as the cluster pulls it.

    Raises:
        KvedgeError: the registry does not have it.
    """
    path = f"/v2/{wanted.repository}/manifests/{tag(wanted)}"
    digest = _request(registry, "HEAD", path)
    if not digest:
        raise errors.KvedgeError(
            f"registry {registry.push!r} has no image {wanted.repository}:{tag(wanted)}",
            hint="`kvedge up` pushes it, or: kvedge image push",
        )
    return f"{registry.pull}/{wanted.repository}@{digest}"


def _delete_manifest(registry: spec.Registry, repository: str, name: str) -> str:
    """Remove a manifest by tag or digest and return its digest; gone already is fine."""
    path = f"/v2/{repository}/manifests/"
    if not name.startswith("sha256:"):
        name = _request(registry, "HEAD", path + name)
    if name:
        _request(registry, "DELETE", path + name)
    return name


def _request(registry: spec.Registry, method: str, path: str) -> str:
    """Ask the registry; return the digest header, empty if there is no such manifest."""
    host = registry.push
    plain = registry.ca_file is None and host.partition(":")[0] in ("localhost", "127.0.0.1")
    url = f"{'http' if plain else 'https'}://{host}{path}"
    accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
    request = urllib.request.Request(url, method=method, headers={"Accept": accept})  # noqa: S310
    trust = ssl.create_default_context(cafile=registry.ca_file) if not plain else None
    try:
        with urllib.request.urlopen(request, timeout=20, context=trust) as answer:  # noqa: S310
            return answer.headers.get("Docker-Content-Digest", "")
    except urllib.error.HTTPError as cause:
        if cause.code == 404 or (method == "GET" and cause.code == 401):
            return ""
        raise errors.RemoteError(
            f"{method} {url}", status=cause.code, reason=str(cause.reason)
        ) from cause
    except OSError as cause:
        reason = getattr(cause, "reason", cause)
        raise errors.RemoteError(
            f"reach registry {host!r}", reason="Unreachable", details=str(reason),
            hint="check registry.push and registry.caFile; for a local site: kvedge site up",
        ) from cause  # fmt: skip
