"""What travels beside an image: a bill of materials and how it was made. Pure and deterministic.

SPDX 2.3 (spdx.github.io/spdx-spec/v2.3) from dpkg's own list, and an in-toto statement with SLSA
provenance v1 (slsa.dev/spec/v1.0/provenance).
"""

from __future__ import annotations

import datetime
import json
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Sequence

    from images.plan import Plan
    from images.scanning import Package

__all__ = ["IN_TOTO", "SPDX", "provenance", "spdx"]

SPDX = "application/spdx+json"
IN_TOTO = "application/vnd.in-toto+json"
_NAMESPACE = uuid.UUID("5b0d2f7e-2b5b-5d43-8a56-0d8f0d0f6a55")


def spdx(plan: Plan, packages: Sequence[Package], *, digest: str) -> bytes:
    """Return the bill of materials of a disk image.

    Args:
        plan: how the image was made.
        packages: what dpkg says is installed.
        digest: of the image's manifest, `sha256:…`.
    """
    recipe = plan.recipe
    created = _time(recipe.epoch)
    identity = uuid.uuid5(_NAMESPACE, digest)
    image = {
        "SPDXID": "SPDXRef-Image",
        "name": recipe.name,
        "versionInfo": digest,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
        "checksums": [{"algorithm": "SHA256", "checksumValue": digest.removeprefix("sha256:")}],
    }
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"{recipe.name}-{digest[7:19]}",
        "documentNamespace": f"urn:uuid:{identity}",
        "creationInfo": {"created": created, "creators": ["Tool: kvedge"]},
        "packages": [image, *(_package(one, recipe.os, recipe.release) for one in packages)],
        "relationships": [
            _relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image"),
            *(_relation("SPDXRef-Image", "CONTAINS", _reference(one)) for one in packages),
        ],
    }
    return _json(document)


def _package(one: Package, os: str, release: str) -> dict[str, Any]:
    place = f"pkg:deb/{os}/{quote(one.name)}@{quote(one.version)}"
    return {
        "SPDXID": _reference(one),
        "name": one.name,
        "versionInfo": one.version,
        "sourceInfo": f"built from {one.source}",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": f"{place}?arch={one.architecture}&distro={release}",
            }
        ],
    }


def _reference(one: Package) -> str:
    # SPDX ids take letters, digits, dots and hyphens only.
    return f"SPDXRef-{one.name.replace('+', '-plus-')}-{one.architecture}"


def _relation(first: str, kind: str, second: str) -> dict[str, str]:
    return {"spdxElementId": first, "relationshipType": kind, "relatedSpdxElement": second}


def provenance(plan: Plan, packages: Sequence[Package], *, digest: str) -> bytes:
    """Return how a disk image was made: recipe, step keys, and the packages that were found."""
    recipe = plan.recipe
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": recipe.name, "digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:kvedge:image:v1",
                "externalParameters": {"recipe": recipe.name, "revision": recipe.revision},
                "internalParameters": {
                    "epoch": _time(recipe.epoch),
                    "steps": {step.name: step.key for step in plan.steps},
                },
                "resolvedDependencies": [
                    {
                        "uri": f"pkg:deb/{recipe.os}/{quote(one.name)}@{quote(one.version)}"
                        f"?arch={one.architecture}",
                    }
                    for one in packages
                ],
            },
            "runDetails": {"builder": {"id": "urn:kvedge:image-build"}},
        },
    }
    return _json(statement)


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _time(epoch: int) -> str:
    return datetime.datetime.fromtimestamp(epoch, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
