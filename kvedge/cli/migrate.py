"""`kvedge migrate`: settings for what another tool made."""

from __future__ import annotations

from typing import IO

import click

__all__ = ["migrate"]


@click.group()
def migrate() -> None:
    """Print settings for what another tool made."""


@migrate.command()
@click.argument("values", type=click.File(encoding="utf-8"))
def kvedge(values: IO[str]) -> None:
    """Print a stack file for a VM of the KVEdge Helm chart.

    VALUES is the release's values file: helm get values RELEASE -a > values.yaml
    """
    import yaml

    from infra import migration
    from kvedge import errors

    try:
        given = yaml.safe_load(values)
    except yaml.YAMLError as cause:
        problem = errors.Problem(
            path=values.name, message=f"is no YAML: {cause}".replace("\n", " ")
        )
        raise errors.SpecError("values of the KVEdge chart", [problem]) from cause
    found = migration.from_kvedge(given)
    click.echo(migration.stack_text(found), nl=False)
