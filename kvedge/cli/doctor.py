"""`kvedge doctor`: what is wrong here, and what mends it."""

from __future__ import annotations

import asyncio
import dataclasses
import sys

import click

from kvedge.cli import _common

__all__ = ["doctor"]


@click.command()
@_common.output_option
@_common.kubeconfig_option
def doctor(output, kubeconfig) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Check this machine and, if one is named, the cluster; exit code 1 if something fails."""
    from kvedge import errors, kube, survey

    _common.load_environment()
    findings = survey.check_machine()
    try:
        config = kube.load_config(kubeconfig)
    except errors.KvedgeError as error:
        findings.append(
            survey.Finding(check="cluster", state="warn", found=error.message, fix=error.hint)
        )
    else:

        async def ask() -> list[survey.Finding]:
            async with kube.Client(config) as client:
                return await survey.check_cluster(client)

        findings += asyncio.run(ask())
    if output == "json":
        _common.emit([dataclasses.asdict(finding) for finding in findings])
    else:
        _common.table(["CHECK", "STATE", "FOUND"], ((f.check, f.state, f.found) for f in findings))
        for finding in findings:
            if finding.fix:
                click.echo(f"{finding.check}: {finding.fix}")
    sys.exit(1 if any(finding.state == "fail" for finding in findings) else 0)
