"""Bills of materials and provenance: complete, stable, in the standards' form."""

import json

from images import attesting, plan, recipe, scanning

PACKAGES = [
    scanning.Package(
        name=name, version="1:2.0+deb12u1", architecture="amd64", source="src", installed_kib=1
    )
    for name in ("bash", "libstdc++6")
]
DIGEST = "sha256:" + "a" * 64


def _plan():
    hooks = ("customize.sh", "essential.sh", "layer.sh", "unpack.sh")
    assets = plan.Assets(
        overlays={"guest": {}},
        hooks=dict.fromkeys(hooks, b""),
        local_packages={"edgesim": "0"},
    )
    return plan.plan(recipe.load("debian-12-edge"), assets)


def test_spdx_lists_every_package():
    """Each package has an id that SPDX allows, a version and a package address."""
    document = json.loads(attesting.spdx(_plan(), PACKAGES, digest=DIGEST))
    image, bash, cpp = document["packages"]
    assert image["checksums"][0]["checksumValue"] == "a" * 64
    assert bash["externalRefs"][0]["referenceLocator"] == (
        "pkg:deb/debian/bash@1%3A2.0%2Bdeb12u1?arch=amd64&distro=bookworm"
    )
    assert cpp["SPDXID"] == "SPDXRef-libstdc-plus--plus-6-amd64"
    contained = [r["relatedSpdxElement"] for r in document["relationships"][1:]]
    assert contained == [bash["SPDXID"], cpp["SPDXID"]]


def test_provenance_names_recipe_and_packages():
    """The statement's subject is the image, its materials are the packages."""
    statement = json.loads(attesting.provenance(_plan(), PACKAGES, digest=DIGEST))
    assert statement["subject"][0]["digest"]["sha256"] == "a" * 64
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["recipe"] == "debian-12-edge"
    assert len(definition["resolvedDependencies"]) == 2


def test_same_input_same_bytes():
    """Nothing of the moment or the machine gets in."""
    first = attesting.spdx(_plan(), PACKAGES, digest=DIGEST)
    assert first == attesting.spdx(_plan(), PACKAGES, digest=DIGEST)
