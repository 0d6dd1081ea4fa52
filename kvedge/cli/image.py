"""`kvedge image`: build, push and look into disk and container images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvedge.cli import _common

if TYPE_CHECKING:
    import images
    from kvedge.progress import Progress

__all__ = ["image"]

_CONTAINERS = ("temperature-sensor", "kvedge")
_RECIPE = "debian-12-edge"
_name_argument = click.argument("name", default=_RECIPE, metavar="[NAME]")
_ca_option = click.option(
    "--ca-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    envvar="KVEDGE_REGISTRY_CA_FILE",
    help="Authority that signed the registry's certificate.",
)
_arch_option = click.option(
    "--arch",
    default="amd64",
    show_default=True,
    help="Which one to take where the reference is of several.",
)


@click.group()
def image() -> None:
    """Build, push, pull, test and look into images.

    NAME is a recipe of a disk (debian-12-edge), also for another architecture
    (debian-12-edge@arm64), the path of a recipe of your own (./plant.toml), a container image
    (temperature-sensor, kvedge), or an image in a registry (HOST/REPOSITORY[:TAG][@sha256:…]).
    Results are cached by content in KVEDGE_CACHE, by default ~/.cache/kvedge, up to
    KVEDGE_IMAGE_CACHE_GIB (8).
    """


@image.command()
@_name_argument
@_common.output_option
def build(name: str, output: str) -> None:
    """Build an image, or find it built; needs no root rights and no container engine."""
    with _common.progress_bars() as progress:
        built = _build(name, progress)
    _tell(built, output)


@image.command()
@_name_argument
@click.argument("destination", required=False, metavar="[HOST/REPOSITORY[:TAG]]")
@_ca_option
@click.option("--tag", default="", help="Name to give the image beside its digest.")
def push(name: str, destination: str | None, ca_file: Path | None, tag: str) -> None:
    """Build an image if it is not there and push it; prints it by digest.

    Without a destination it goes to the local site's registry, as kvedge/NAME. Credentials are
    docker's own.
    """
    import os

    import images

    _common.load_environment()
    if destination is None:
        if "/" in name:
            raise click.UsageError("a recipe of your own needs a destination")
        registry = os.environ.get("KVEDGE_REGISTRY_PUSH")
        if not registry:
            raise click.UsageError("no destination, and no local site is up")
        destination = f"{registry}/kvedge/{name}"
        found = os.environ.get("KVEDGE_REGISTRY_CA_FILE")
        ca_file = ca_file or (Path(found) if found else None)
    with _common.progress_bars() as progress:
        built = _build(name, progress)
        where = images.push(built, destination, ca_file=ca_file, tag=tag, progress=progress)
    click.echo(where)


@image.command()
@click.argument("reference", metavar="HOST/REPOSITORY[:TAG][@sha256:…]")
@_ca_option
@_arch_option
@_common.output_option
def pull(reference: str, ca_file: Path | None, arch: str, output: str) -> None:
    """Pull an image with the documents attached to it; every digest is checked.

    From then on `inspect`, `check`, `diff` and `test` know it without a network.
    """
    with _common.progress_bars() as progress:
        pulled = _pulled(reference, ca_file, arch, progress)
    _tell(pulled, output)


@image.command()
@_name_argument
@_common.output_option
def inspect(name: str, output: str) -> None:
    """Show key, digest, layers, and for a disk its packages."""
    from images import inspecting

    facts = inspecting.inspect(name)
    if output == "json":
        _common.emit(facts)
        return
    packages = facts.pop("packages", [])
    stale = facts.pop("stale", [])
    layers = facts.pop("layers")
    attached = facts.pop("attached")
    _common.table(("FIELD", "VALUE"), list(facts.items()))
    _common.table(
        ("LAYER", "BYTES", "TYPE"), [(one["digest"], one["size"], one["type"]) for one in layers]
    )
    if attached:
        _common.table(("ATTACHED", "TYPE"), [(one["digest"], one["type"]) for one in attached])
    if stale:
        _common.table(
            ("STALE IN THE LOCK", "LOCKED", "BUILT"),
            [(one["package"], one["before"], one["after"]) for one in stale],
        )
    if packages:
        _common.table(
            ("PACKAGE", "VERSION", "KIB"),
            [(one["name"], one["version"], one["installed_kib"]) for one in packages],
        )


@image.command("list")
@_common.output_option
def list_(output: str) -> None:
    """Show which images are built."""
    from images import inspecting

    rows = inspecting.overview()
    if output == "json":
        _common.emit(rows)
        return
    _common.table(
        ("NAME", "KIND", "BUILT", "MIB", "DIGEST"),
        [
            (
                one["name"],
                one["kind"],
                "yes" if one["built"] else "no",
                round(one["size"] / 2**20) if one["built"] else "",
                one["digest"],
            )
            for one in rows
        ],
    )


@image.command()
@_name_argument
def check(name: str) -> None:
    """Scan a built disk for what must not be in it: keys, passwords, machine ids."""
    from images import inspecting
    from kvedge import errors

    problems = inspecting.scan(name)
    if problems:
        raise errors.SpecError(f"image {name!r}", problems)
    click.echo(f"image {name!r}: nothing found that must not be there")


@image.command()
@_name_argument
@click.option("--fresh", is_flag=True, help="Ask the archive for today's versions first.")
def lock(name: str, fresh: bool) -> None:
    """Write the versions of a disk's packages into a lock file beside its recipe.

    Without --fresh the versions are those of the image as it is built now.
    """
    from images import relocking

    with _common.progress_bars() as progress:
        file, changes = relocking.relock(name, fresh=fresh, progress=progress)
    _common.table(
        ("PACKAGE", "BEFORE", "AFTER"),
        [(one.package, one.before, one.after) for one in changes],
        empty="nothing changed",
    )
    click.echo(f"wrote {file}")


@image.command()
@click.argument("before")
@click.argument("after")
@_common.output_option
def diff(before: str, after: str, output: str) -> None:
    """Show which package versions differ between two lock files or built disks."""
    import dataclasses

    from images import inspecting, locking

    changes = locking.compare(inspecting.packages_of(before), inspecting.packages_of(after))
    if output == "json":
        _common.emit([dataclasses.asdict(one) for one in changes])
        return
    _common.table(
        ("PACKAGE", "BEFORE", "AFTER"),
        [(one.package, one.before, one.after) for one in changes],
        empty="no difference",
    )


@image.command("test")
@_name_argument
@click.option(
    "--firmware",
    type=click.Choice(["bios", "uefi", "both", "none"]),
    default="both",
    show_default=True,
    help="How to boot it; none scans only.",
)
@click.option("--deadline", default=300.0, show_default=True, help="Seconds until a login.")
@_ca_option
@_common.output_option
@click.pass_context
def test(
    ctx: click.Context,
    name: str,
    firmware: str,
    deadline: float,
    ca_file: Path | None,
    output: str,
) -> None:
    """Scan a disk, boot it under QEMU, log in strictly and check what users rely on.

    A recipe is built and a reference pulled first, if need be.
    """
    import dataclasses

    import images
    from images import proving, registry

    firmwares = {"both": ("bios", "uefi"), "none": ()}.get(firmware, (firmware,))
    with _common.progress_bars() as progress:
        if registry.is_reference(name):
            built = _pulled(name, ca_file, "amd64", progress)
        else:
            built = images.build(name, progress=progress)
        outcomes = list(
            proving.prove(built, firmwares=firmwares, deadline=deadline, progress=progress)
        )
    if output == "json":
        _common.emit([dataclasses.asdict(one) for one in outcomes])
    else:
        _common.table(
            ("STAGE", "CHECK", "RESULT", "FOUND"),
            [
                (
                    one.stage,
                    one.claim,
                    "ok" if one.holds else "FAILED",
                    "" if one.holds else one.found,
                )
                for one in outcomes
            ],
        )
    if not all(one.holds for one in outcomes):
        ctx.exit(1)


@image.command()
@click.option(
    "--keep",
    type=click.FloatRange(min=0),
    help="GiB of the latest used results to keep; else KVEDGE_IMAGE_CACHE_GIB, or 8.",
)
def gc(keep: float | None) -> None:
    """Drop the longest unused results and what killed builds left.

    A build does so by itself at its end, but spares what was used within the last hour.
    """
    from images import cache

    dropped = cache.default_store().collect(
        keep_bytes=None if keep is None else int(keep * 2**30), spare_seconds=0
    )
    freed = sum(entry.size for entry in dropped)
    click.echo(f"dropped {len(dropped)} results, {freed / 2**20:.0f} MiB")


def _build(name: str, progress: Progress) -> images.BuiltImage:
    import images

    if name == "kvedge":
        return images.build_kvedge_image(progress=progress)
    if name in _CONTAINERS:
        return images.build_module(name, progress=progress)
    return images.build(name, progress=progress)


def _pulled(
    reference: str, ca_file: Path | None, arch: str, progress: Progress
) -> images.BuiltImage:
    import os

    from images import pulling

    _common.load_environment()
    found = os.environ.get("KVEDGE_REGISTRY_CA_FILE")
    ours = os.environ.get("KVEDGE_REGISTRY_PUSH", "")
    if ca_file is None and found and ours and reference.startswith(f"{ours}/"):
        ca_file = Path(found)
    return pulling.pull(reference, arch=arch, ca_file=ca_file, progress=progress)


def _tell(built: images.BuiltImage, output: str) -> None:
    facts = {
        "name": built.name,
        "key": built.key,
        "digest": built.digest,
        "size": built.size,
        "layout": str(built.layout),
    }
    if built.disk:
        facts["disk"] = str(built.disk)
    if output == "json":
        _common.emit(facts)
    else:
        _common.table(("FIELD", "VALUE"), list(facts.items()))
