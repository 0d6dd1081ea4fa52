"""`kvedge cloudinit`: print and check first-boot data."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["cloudinit"]

_file_argument = click.argument(
    "file", type=click.Path(path_type=Path, exists=True, dir_okay=False)
)


@click.group()
def cloudinit() -> None:
    """Print and check first-boot data."""


@cloudinit.command()
@_file_argument
@click.option(
    "--fragment",
    "fragments",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="More cloud-config to merge; what contradicts is refused. Can be given several times.",
)
def render(file: Path, fragments: tuple[Path, ...]) -> None:
    """Print the #cloud-config of a YAML FILE with hostname, users, files, packages and so on.

    The fields are those of the reference of first-boot data; `extra` holds a fragment of your own.
    """
    import dataclasses

    import cloudinit as printing

    data = printing.parse_user_data(file.read_text(encoding="utf-8"))
    for one in fragments:
        fragment = printing.parse_fragment(one.read_text(encoding="utf-8"), subject=str(one))
        data = dataclasses.replace(data, extra=printing.merge(data.extra, fragment))
    click.echo(printing.render(data), nl=False)


@cloudinit.command()
@_file_argument
@click.option(
    "--image",
    "image_name",
    default="debian-12-edge",
    show_default=True,
    help="Check against the schema of this image's own cloud-init; it must be built.",
)
@click.option("--inline", is_flag=True, help="It will stand in the VM's spec, not in a Secret.")
@click.option("--lint-only", is_flag=True, help="Ask no image for its schema.")
def check(file: Path, image_name: str, inline: bool, lint_only: bool) -> None:
    """Check user data: the guest's schema, and traps beyond it."""
    import cloudinit as printing
    from kvedge import errors

    text = file.read_text(encoding="utf-8")
    problems = printing.lint(text, inline=inline)
    if not lint_only:
        from images import inspecting

        schema = inspecting.schema(image_name)
        problems += [one for one in printing.validate(text, schema) if one not in problems]
        zone = printing.time_zone(text)
        if zone and not inspecting.has_time_zone(image_name, zone):
            problems.append(
                errors.Problem(
                    path="timezone",
                    message=f"image {image_name!r} does not know {zone!r}",
                    hint="add the package tzdata to a recipe of your own",
                )
            )
    if problems:
        raise errors.SpecError(str(file), problems)
    click.echo(f"{file}: fine")
