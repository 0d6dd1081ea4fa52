"""What several command groups share: finding the site, tables, JSON, progress on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from kvedge import iothub
    from kvedge.progress import Progress

__all__ = [
    "emit",
    "hub_ca_file",
    "hub_from_environment",
    "identity_option",
    "kubeconfig_option",
    "load_environment",
    "namespace_option",
    "output_option",
    "progress_bars",
    "site_directory",
    "site_identities",
    "table",
    "via_option",
]

output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Form of the output.",
)
kubeconfig_option = click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="KVEDGE_KUBECONFIG",
    help="Cluster to talk to; the local site's or KUBECONFIG's by default.",
)
via_option = click.option(
    "--via",
    type=click.Choice(["api", "address"]),
    default="api",
    show_default=True,
    help="Way: the Kubernetes API, or the VM's LoadBalancer address.",
)
identity_option = click.option(
    "-i",
    "--identity",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="Private key; the local site's by default.",
)
namespace_option = click.option("-n", "--namespace", help="Namespace; the context's by default.")


def site_directory(name: str | None = None) -> Path:
    """Return the folder of a local site, whether it is there or not."""
    state, named = os.environ.get("KVEDGE_STATE"), os.environ.get("KVEDGE_SITE")
    if state and name in (None, named):
        return Path(state)
    return Path(".kvedge").absolute() / (name or named or "dev")


def site_identities(given: Sequence[Path] = ()) -> list[Path]:
    """Return the private keys to offer: those given, else the local site's if there is one."""
    own = site_directory() / "keys" / "id_ed25519"
    return list(given) or ([own] if own.exists() else [])


def load_environment(name: str | None = None) -> bool:
    """Take over the variables of the local site's env file, if there is one and none is sourced.

    Variables that are set already win, so that a user's own choice is kept.
    """
    if "KVEDGE_SITE" in os.environ:
        return True
    file = site_directory(name) / "env"
    if not file.exists():
        return False
    from kvedge import settings

    for key, value in settings.read_variables(file).items():
        if key == "PATH":
            os.environ[key] = value.replace("$PATH", os.environ.get("PATH", ""))
        else:
            os.environ.setdefault(key, value)
    return True


def hub_ca_file() -> Path | None:
    """Return the file with the authority of the hub's certificate, if one is named."""
    named = os.environ.get("KVEDGE_HUB_CA_FILE")
    return Path(named) if named else None


def hub_from_environment(*, backoff: iothub.Backoff | None = None) -> iothub.Hub | None:
    """Return the hub of KVEDGE_HUB_CONNECTION_STRING_FILE; None if none is named.

    Raises:
        KvedgeError: the file is not there or holds no connection string.
    """
    from kvedge import errors, iothub
    from kvedge.redact import Secret

    named = os.environ.get("KVEDGE_HUB_CONNECTION_STRING_FILE")
    if not named:
        return None
    try:
        text = Path(named).read_text(encoding="utf-8")
    except OSError as cause:
        raise errors.KvedgeError(
            f"cannot read the hub's connection string from {named!r}: {cause.strerror}",
            hint="KVEDGE_HUB_CONNECTION_STRING_FILE names the file",
        ) from cause
    return iothub.Hub.from_connection_string(
        Secret(text.strip()), ca_file=hub_ca_file(), backoff=backoff
    )


def emit(data: Any) -> None:
    """Print data as JSON."""
    click.echo(json.dumps(data, indent=2, sort_keys=True, default=str))


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "") -> None:
    """Print an aligned table in the manner of kubectl: upper-case heads, no lines."""
    cells = [[str(cell) if cell not in (None, "") else "-" for cell in row] for row in rows]
    if not cells:
        if empty:
            click.echo(empty, err=True)
        return
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]
    for row in [list(headers), *cells]:
        line = "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


@contextlib.contextmanager
def progress_bars() -> Generator[Progress, None]:
    """Show tasks as bars on a terminal, else one line at each task's beginning and end."""
    if sys.stderr.isatty():
        with _bars() as bars:
            yield bars
    else:
        yield _lines()


def _lines() -> Progress:
    started: dict[str, float] = {}
    finished: set[str] = set()

    def hear(task: str, done: float = 0.0, total: float | None = None, note: str = "") -> None:
        if task not in started:
            started[task] = time.monotonic()
            if total is None or done < total:
                click.echo(f"  … {task}", err=True)
        if total is not None and done >= total and task not in finished:
            finished.add(task)
            seconds = time.monotonic() - started[task]
            took = f" ({seconds:.1f} s)" if seconds >= 0.1 else ""
            click.echo(f"  ✓ {task}{took}{' ' + note if note else ''}", err=True)

    return hear


@contextlib.contextmanager
def _bars() -> Generator[Progress, None]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Rich

    with Rich(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
        console=Console(stderr=True),
    ) as rich:
        known: dict[str, Any] = {}

        def hear(task: str, done: float = 0.0, total: float | None = None, note: str = "") -> None:
            if task not in known:
                known[task] = rich.add_task(task, total=total, note=note)
            rich.update(known[task], completed=done, total=total, note=note)

        yield hear
