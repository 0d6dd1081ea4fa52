"""BootImage: an image that is built from its recipe and pushed, handed out by digest.

A preview compares keys and builds nothing. Used for the disk image and, by the platform, for module
images and the connector's own.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from infra import dynamic, publishing
from kvedge import errors

if TYPE_CHECKING:
    from kvedge import spec

__all__ = ["BootImage", "BootImageProvider"]


class BootImageProvider(dynamic.Provider):
    """Builds, pushes and removes one image."""

    def builder(self) -> publishing.Builder:
        """Return what builds; tests replace it."""
        return publishing.builder()

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Build through the cache and push what the registry lacks."""
        outs = self._publish(props)
        return CreateResult(id_=f"{props['repository']}:{props['key'][:16]}", outs=outs)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Another key or registry is another image."""
        fields = ("kind", "name", "key", "repository", "push", "pull")
        replaces = [k for k in ("key", "repository", "push") if _olds.get(k) != _news.get(k)]
        changed = any(_olds.get(k) != _news.get(k) for k in fields)
        return DiffResult(changes=changed, replaces=replaces, delete_before_replace=False)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Hand the image out by another name of the registry."""
        return UpdateResult(outs=self._publish(_news))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Keep what is known: publishing finds out by itself."""
        return ReadResult(id_, props)

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Remove the image from the registry if this environment is its owner."""
        if _props.get("owned"):
            try:
                self.builder().remove(_wanted(_props), self.registry(), _props["digest"])
            except errors.KvedgeError as cause:
                pulumi.log.warn(f"image {_props['repository']!r} stays: {dynamic.plain(cause)}")

    def _publish(self, props: dict[str, Any]) -> dict[str, Any]:
        try:
            digest = self.builder().publish(_wanted(props), self.registry())
        except errors.KvedgeError as cause:
            raise RuntimeError(f"image {props['name']!r}: {dynamic.plain(cause)}") from cause
        reference = f"{props['pull']}/{props['repository']}@{digest}"
        return {**props, "digest": digest, "reference": reference}


class BootImage(Resource, module="kvedge", name="BootImage"):
    """An image in the registry."""

    digest: pulumi.Output[str]
    reference: pulumi.Output[str]
    """`HOST/REPOSITORY@sha256:…` as the cluster pulls it."""

    def __init__(
        self, environment: spec.Environment, wanted: publishing.Wanted,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            BootImageProvider(),
            f"image-{wanted.name}",
            {
                **dataclasses.asdict(wanted),
                "push": environment.registry.push,
                "pull": environment.registry.pull,
                # Other environments of the registry boot the same image; the platform's owner goes
                # last and takes it away.
                "owned": environment.platform is not None,
                "digest": None,
                "reference": None,
            },
            opts,
        )


def _wanted(props: dict[str, Any]) -> publishing.Wanted:
    fields = (field.name for field in dataclasses.fields(publishing.Wanted))
    return publishing.Wanted(**{name: props[name] for name in fields})
