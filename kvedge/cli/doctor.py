"""`kvedge doctor`: what is wrong here, and what mends it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from pathlib import Path

import click

from kvedge.cli import _common

__all__ = ["doctor"]


@click.command()
@_common.output_option
@_common.kubeconfig_option
@_common.namespace_option
def doctor(output, kubeconfig, namespace) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Check this machine, the cluster and the hub; exit code 1 if something fails.

    The cluster is kubectl's, the hub the one of KVEDGE_HUB_CONNECTION_STRING_FILE; inside a
    folder with a local site both are the site's. Nothing is changed anywhere.
    """
    from kvedge.survey import checks

    _common.load_environment()
    findings = checks.check_machine()
    findings += asyncio.run(_remote(kubeconfig, namespace or ""))
    if output == "json":
        _common.emit([dataclasses.asdict(finding) for finding in findings])
    else:
        _common.table(["CHECK", "STATE", "FOUND"], ((f.check, f.state, f.found) for f in findings))
        for finding in findings:
            if finding.fix:
                click.echo(f"{finding.check}: {finding.fix}")
    sys.exit(1 if any(finding.state == "fail" for finding in findings) else 0)


async def _remote(kubeconfig: Path | None, namespace: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
    from kvedge import errors, iothub, kube, survey
    from kvedge.survey import checks

    findings: list[survey.Finding] = []
    try:
        config = kube.load_config(kubeconfig)
    except errors.KvedgeError as error:
        findings.append(
            survey.Finding(check="cluster", state="warn", found=error.message, fix=error.hint)
        )
    else:
        pull, push = (os.environ.get(f"KVEDGE_REGISTRY_{word}", "") for word in ("PULL", "PUSH"))
        authority = os.environ.get("KVEDGE_REGISTRY_CA_FILE")
        async with kube.Client(config) as client:
            findings += await checks.check_cluster(client, namespace=namespace)
            if all(finding.state != "fail" for finding in findings[:1]):
                findings += await checks.check_images(
                    client,
                    hosts={pull: push} if pull and push else {},
                    ca_file=Path(authority) if authority else None,
                )
    try:
        hub = _common.hub_from_environment(backoff=iothub.Backoff(tries=1))
    except errors.KvedgeError as error:
        findings.append(
            survey.Finding(check="hub", state="fail", found=error.message, fix=error.hint)
        )
        return findings
    if hub is None:
        findings.append(
            survey.Finding(
                check="hub", state="warn", found="none is named",
                fix="put a service connection string into a file of mode 0600 and name it in "
                "KVEDGE_HUB_CONNECTION_STRING_FILE",
            )
        )  # fmt: skip
        return findings
    async with hub:
        return findings + await checks.check_hub(hub, ca_file=_common.hub_ca_file())
