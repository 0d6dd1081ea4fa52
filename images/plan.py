"""A recipe as a row of steps, each with a key of everything that goes into it. Pure.

The key of the last step is the image's name before it exists: it changes exactly when the recipe,
its overlays, a package that kvedge makes, or a step's way of working changes. It does not hold the
versions of the archive's packages: `revision` in the recipe asks for today's, a lock pins them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from images.recipe import Layer, Recipe

__all__ = ["Assets", "Plan", "Step", "plan"]

_WAYS = {"root": 1, "layer": 1, "disk": 1, "oci": 2}
"""Raised when the code of a step makes something else from the same input."""
_HOOKS = {
    ("disk", "root"): ("customize.sh", "essential.sh"),
    ("disk", "layer"): ("customize.sh", "layer.sh", "unpack.sh"),
    ("container", "root"): ("container.sh",),
}
_NAMESPACE = uuid.UUID("c3a6d7a2-5f0e-5a43-9a52-6b7e6b2d8a11")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Assets:
    """Content that recipes name and that lies beside them."""

    overlays: dict[str, dict[str, bytes]]
    """Overlay name to path to content."""
    hooks: dict[str, bytes]
    """Hook file name to content."""
    local_packages: dict[str, str]
    """Name of a package that kvedge makes to a digest of it."""
    debs: dict[str, str] = dataclasses.field(default_factory=dict)
    """Path of a package file, as the recipe says it, to a digest of it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One cached piece of work."""

    kind: str
    """`root`, `layer`, `disk` or `oci`."""
    name: str
    key: str
    below: str = ""
    """Key of the step whose result is built upon."""
    layer: Layer | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All steps of a recipe, first to last."""

    recipe: Recipe
    steps: tuple[Step, ...]
    identity: uuid.UUID
    """What the disk's GUIDs derive from."""

    @property
    def key(self) -> str:
        """Return the image's key."""
        return self.steps[-1].key


def plan(recipe: Recipe, assets: Assets) -> Plan:
    """Return the steps of a recipe."""
    steps: list[Step] = []
    common = {
        "recipe": recipe.kind,
        "os": recipe.os,
        "release": recipe.release,
        "arch": recipe.arch,
        "epoch": recipe.epoch,
        "revision": recipe.revision,
        "suites": recipe.apt.suites,
        "components": recipe.apt.components,
        # Left out without a lock, so that a lock file alone decides about its keys.
        **({"lock": recipe.lock.packages} if recipe.lock else {}),
    }
    below = ""
    for layer in recipe.layers:
        kind = "layer" if steps else "root"
        local = {name: assets.local_packages[name] for name in layer.local_packages}
        inputs = {
            **common,
            "below": below,
            "packages": sorted(layer.packages),
            "local": local,
            "hooks": {name: _digest(assets.hooks[name]) for name in _HOOKS[recipe.kind, kind]},
        }
        # Left out where there are none, so that they say nothing about other layers' keys.
        if layer.sources:
            inputs["sources"] = [
                [one.uri, one.suite, one.components, one.fingerprint]
                for one in recipe.sources
                if one.name in layer.sources
            ]
        if layer.debs:
            inputs["debs"] = sorted(assets.debs[path] for path in layer.debs)
        key = _key(kind, inputs)
        steps.append(Step(kind=kind, name=layer.name, key=key, below=below, layer=layer))
        below = key
    content = {
        "below": below,
        "overlays": {
            name: {path: _digest(data) for path, data in assets.overlays[name].items()}
            for name in recipe.content.overlays
        },
        "content": dataclasses.asdict(recipe.content),
        "users": [dataclasses.asdict(user) for user in recipe.users],
        "boot": dataclasses.asdict(recipe.boot),
        "disk_mib": recipe.disk_mib,
        "name": recipe.name,
        "apt": {**dataclasses.asdict(recipe.apt), "keyring": ""},
        "sources": [dataclasses.asdict(source) for source in recipe.sources],
    }
    disk = Step(kind="disk", name="disk", key=_key("disk", content), below=below)
    oci = Step(kind="oci", name="oci", key=_key("oci", {"below": disk.key}), below=disk.key)
    return Plan(
        recipe=recipe,
        steps=(*steps, disk, oci),
        identity=uuid.uuid5(_NAMESPACE, disk.key),
    )


def _key(kind: str, inputs: Mapping[str, Any]) -> str:
    text = json.dumps({"kind": kind, "way": _WAYS[kind], **inputs}, sort_keys=True)
    return f"{kind}-{_digest(text.encode())[:32]}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
