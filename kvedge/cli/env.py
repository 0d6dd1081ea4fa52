"""`kvedge env`: the environments of a project, which are its stack files."""

from __future__ import annotations

import dataclasses

import click

from kvedge.cli import _common

__all__ = ["env"]


@click.group()
def env() -> None:
    """List, make, check and show environments: one stack file each."""


@env.command("list")
@_common.output_option
def list_environments(output: str) -> None:
    """List the project's environments."""
    from infra import engine, environments

    found = environments.listed(engine.find_project("dev"))
    rows = [
        (
            one.name,
            len(one.environment.fleet) if one.environment else "",
            one.environment.site if one.environment else "",
            one.environment.hub.device_host if one.environment else "",
            "yes" if one.environment and one.environment.platform else "",
            f"{len(one.problems)} mistakes" if one.problems else "valid",
        )
        for one in found
    ]
    heads = ("NAME", "VMS", "SITE", "HUB", "PLATFORM", "SETTINGS")
    if output == "json":
        keys = [head.lower() for head in heads]
        _common.emit([dict(zip(keys, row, strict=True)) for row in rows])
    else:
        _common.table(heads, rows, empty="no stack files; make one: kvedge env new NAME")


@env.command()
@click.argument("name")
@click.option("--like", default="", metavar="STACK", help="Take the settings of this environment.")
def new(name: str, like: str) -> None:
    """Write a stack file for the environment NAME, with every setting explained."""
    from infra import engine, environments

    file = environments.create(engine.find_project(name), name, like=like)
    click.echo(f"wrote {file}")
    click.echo(f"edit it, then: kvedge env validate {name} && kvedge up {name}")


@env.command()
@click.argument("stacks", nargs=-1)
def validate(stacks: tuple[str, ...]) -> None:
    """Check the settings of STACKS, or of all environments; exit code 2 if one is wrong."""
    from infra import engine, environments

    project = engine.find_project(stacks[0] if stacks else "dev")
    for one in environments.check(project, stacks):
        count = len(one.environment.fleet) if one.environment else 0
        click.echo(f"environment {one.name!r} is valid: {count} VMs")


@env.command()
@click.argument("stack", default="dev")
@_common.output_option
def show(stack: str, output: str) -> None:
    """Show what the settings of STACK come to: its devices, VMs and sizes."""
    from infra import engine, environments

    found = environments.load(engine.find_project(stack), stack)
    if output == "json":
        vms = [{**dataclasses.asdict(vm), "device_id": found.device_id(vm)} for vm in found.fleet]
        _common.emit({**dataclasses.asdict(found), "fleet": vms})
        return
    cluster = found.cluster
    click.echo(f"cluster    {cluster.context or 'current context'}, {cluster.namespace}")
    click.echo(f"hub        {found.hub.device_host}")
    click.echo(f"image      {found.image.reference or f'recipe {found.image.recipe}'}")
    click.echo(f"platform   {'here' if found.platform else 'in another environment'}")
    click.echo("")
    _common.table(
        ("VM", "DEVICE", "VCPUS", "MEMORY", "OS DISK", "DATA DISK"),
        [
            (
                vm.name, found.device_id(vm), vm.instancetype or vm.vcpus,
                "" if vm.instancetype else vm.memory, vm.os_disk, vm.data_disk,
            )
            for vm in found.fleet
        ],
        empty="no VMs",
    )  # fmt: skip
