"""Manifest: any Kubernetes object as a pulumi resource, from a plain dict.

The provider's typed classes cost import time, know no KubeVirt kinds and add nothing to a dict that
is built and tested as one. Secrets among the values stay secrets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pulumi

if TYPE_CHECKING:
    from kvedge.wire import KubeObject

__all__ = ["PROVIDER_VERSION", "Manifest"]

PROVIDER_VERSION = "4.25.0"
"""Of the Kubernetes provider, as kvedge.tools builds it."""


class Manifest(pulumi.CustomResource):
    """One Kubernetes object."""

    metadata: pulumi.Output[dict[str, Any]]

    def __init__(
        self, name: str, obj: KubeObject, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        group, _, version = obj["apiVersion"].rpartition("/")
        token = f"kubernetes:{group or 'core'}/{version}:{obj['kind']}"
        extra = pulumi.ResourceOptions(version=PROVIDER_VERSION)
        super().__init__(token, name, dict(obj), pulumi.ResourceOptions.merge(opts, extra))
