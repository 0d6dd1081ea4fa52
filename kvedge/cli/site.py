"""`kvedge site`: a complete site on this machine."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvedge import redact
from kvedge.cli import _common

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvedge.site.control import SiteStatus

__all__ = ["site"]


@click.group()
def site() -> None:
    """Run a complete site on this machine: Kubernetes, KubeVirt, IoT Hub emulator, registry."""


def _options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder of the site; default .kvedge/NAME below the current one.",
    )(command)
    return click.argument("name", default="dev")(command)


def _directory(name: str, directory: Path | None) -> Path:
    from kvedge.site import state

    return directory or state.default_directory(name)


@site.command()
@_options
@_common.output_option
def up(name: str, directory: Path | None, output: str) -> None:
    """Bring the site NAME up, or mend it."""
    from kvedge.site import control

    begun = time.monotonic()
    with _common.progress_bars() as progress:
        found = control.up(_directory(name, directory), name, progress=progress)
    if output == "json":
        click.echo(found.folder.site_file.read_text(encoding="utf-8"), nl=False)
        return
    click.echo(f"site {name!r} is up after {time.monotonic() - begun:.1f} s")
    click.echo(f"use it: . {found.folder.env_file}")


@site.command()
@_options
@click.option("--purge", is_flag=True, help="Remove the site's folder and all its state as well.")
def down(name: str, directory: Path | None, purge: bool) -> None:
    """Stop the site NAME; its state is kept for the next `up`."""
    from kvedge.site import control

    with _common.progress_bars() as progress:
        acted = control.down(_directory(name, directory), purge=purge, progress=progress)
    click.echo(f"site {name!r} is {'removed' if purge and acted else 'down'}")


@site.command()
@_options
@_common.output_option
def status(name: str, directory: Path | None, output: str) -> None:
    """Show the site's parts; exit code 1 unless all are ready."""
    from kvedge.site import control

    seen = control.status(_directory(name, directory))
    if output == "json":
        _common.emit(dataclasses.asdict(seen))
    else:
        _show(seen)
    if seen.state != "up":
        sys.exit(1)


def _show(seen: SiteStatus) -> None:
    click.echo(f"site {seen.name!r} is {seen.state} ({seen.directory})")
    if not seen.parts:
        return
    click.echo(f"{'PART':<26}{'STATE':<10}{'PID':>8}{'RESTARTS':>10}{'MIB':>6}  NOTE")
    for part in seen.parts:
        line = f"{part.name:<26}{part.state:<10}{part.pid:>8}{part.restarts:>10}{part.rss_mib:>6}"
        click.echo(f"{line}  {part.error}".rstrip())
    click.echo(f"kubeconfig {seen.kubeconfig}\nhub {seen.hub}\nregistry {seen.registry}")
    click.echo(f"inside: nsenter --target={seen.door} -U -n -m --preserve-credentials")


@site.command()
@_options
@click.option("--part", "-p", "wanted", multiple=True, help="Only this part; may be repeated.")
@click.option("--tail", default=20, show_default=True, help="Lines of each part.")
@click.option("--follow", "-f", is_flag=True, help="Go on with new lines.")
def logs(
    name: str, directory: Path | None, wanted: tuple[str, ...], tail: int, follow: bool
) -> None:
    """Show the logs of the site's parts."""
    from kvedge.site import control

    files = control.log_files(_directory(name, directory), wanted)
    width = max((len(part) for part in files), default=0)
    ends: dict[str, int] = {}
    for part, path in files.items():
        data = path.read_bytes()
        ends[part] = len(data)
        for line in data.decode(errors="replace").splitlines()[-tail:] if tail else []:
            click.echo(f"{part:<{width}} | {redact.redacted(line)}")
    while follow:
        for part, path in files.items():
            with path.open("rb") as file:
                # A smaller file is a new one: the supervisor moved the old one away.
                file.seek(ends[part] if path.stat().st_size >= ends[part] else 0)
                for raw in file:
                    line = raw.decode(errors="replace").rstrip()
                    click.echo(f"{part:<{width}} | {redact.redacted(line)}")
                ends[part] = file.tell()
        time.sleep(0.3)
