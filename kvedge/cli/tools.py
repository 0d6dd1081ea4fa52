"""`kvedge tools`: find or build the programs that kvedge drives."""

from __future__ import annotations

import click

from kvedge.cli import _common

__all__ = ["tools"]


@click.group()
def tools() -> None:
    """Find or build the programs that kvedge drives.

    A program on PATH is taken if its version fits, else the cache's, else it is built from source.
    KVEDGE_CACHE names another cache; KVEDGE_GO_CACHE keeps Go's own caches after a build (a folder,
    or `default` for those of `go env`); KVEDGE_DEBIAN_MIRROR names the mirror of Debian's parts.
    """


@tools.command("list")
@_common.output_option
def list_(output: str) -> None:
    """Show each program: version, where it comes from, where it is."""
    from kvedge.tools import status

    rows = status()
    if output == "json":
        _common.emit(
            [
                {
                    "name": row.name,
                    "family": row.family,
                    "version": row.version,
                    "source": row.source,
                    "path": None if row.path is None else str(row.path),
                }
                for row in rows
            ]
        )
        return
    _common.table(
        ("NAME", "VERSION", "SOURCE", "PATH"),
        [(row.name, row.version, row.source, row.path) for row in rows],
    )


@tools.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--also", multiple=True, metavar="NAME", help="One more than kvedge itself drives.")
def build(names: tuple[str, ...], also: tuple[str, ...]) -> None:
    """Build what is missing: the named programs, or all that kvedge itself drives."""
    from kvedge import tools as programs

    with _common.progress_bars() as progress:
        programs.ensure((*(names or programs.names()), *also), progress=progress)


@tools.command()
@click.argument("name")
def where(name: str) -> None:
    """Print the path of a program."""
    from kvedge.tools import path

    click.echo(path(name))
