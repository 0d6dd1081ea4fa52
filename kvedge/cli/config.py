"""`kvedge config`: where each setting comes from, and the settings' schema for editors."""

from __future__ import annotations

import click

from kvedge.cli import _common

__all__ = ["config"]


@click.group()
def config() -> None:
    """Show settings with their sources, and the settings' JSON Schema."""


@config.command()
@click.argument("stack", default="dev")
@_common.output_option
def show(stack: str, output: str) -> None:
    """Show each setting of STACK with its value and where that comes from.

    A variable wins over the stack file, and the file over the default.
    """
    from infra import engine, environments
    from kvedge import redact, settings

    given = settings.read_stack(engine.find_project(stack).stacks / f"Pulumi.{stack}.yaml")
    found = settings.sources(given, environ=environments.variables(stack))
    if output == "json":
        rows = {one.path: {"value": one.value, "source": one.source} for one in found}
        _common.emit(rows)
        return
    _common.table(
        ("SETTING", "VALUE", "SOURCE"),
        [(one.path, redact.redacted(str(one.value)), one.source) for one in found],
    )


@config.command()
def schema() -> None:
    """Print the JSON Schema of stack files, for editors.

    In a stack file: # yaml-language-server: $schema=kvedge.schema.json
    """
    from kvedge import schema as settings_schema

    _common.emit(settings_schema.stack_schema())
