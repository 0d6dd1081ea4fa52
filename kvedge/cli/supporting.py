"""`kvedge support-bundle`."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import click

from kvedge.cli import _common

__all__ = ["support_bundle"]


@click.command("support-bundle")
@click.option("--file", "file", type=click.Path(path_type=Path, dir_okay=False),
              help="Where to write it; kvedge-support-TIME.tar.gz by default.")  # fmt: skip
@_common.kubeconfig_option
@_common.namespace_option
def support_bundle(file, kubeconfig, namespace) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Collect findings, objects, events, console logs and the hub's view into one tar.gz.

    Secrets are not read, and what looks like one is masked; look into the file before you send
    it. Its mode is 0600.
    """
    _common.load_environment()
    name = f"kvedge-support-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    target = file or Path(f"{name}.tar.gz")
    count, failed = asyncio.run(_write(target, name, kubeconfig, namespace or ""))
    click.echo(f"{count} files in {target}")
    for line in failed:
        click.echo(f"note: not in it: {line}", err=True)


async def _write(target, name, kubeconfig, namespace) -> tuple[int, list[str]]:  # type: ignore[no-untyped-def]  # noqa: ANN001
    import contextlib

    from kvedge import errors, iothub, kube
    from kvedge.redact import Secret
    from kvedge.survey import bundle, checks

    secrets: list[Secret] = []
    findings = checks.check_machine()
    async with contextlib.AsyncExitStack() as stack:
        client = hub = None
        with contextlib.suppress(errors.KvedgeError):
            config = kube.load_config(kubeconfig)
            client = await stack.enter_async_context(kube.Client(config))
            secrets.append(Secret(config.token() or ""))
            findings += await checks.check_cluster(client, namespace=namespace)
        with contextlib.suppress(errors.KvedgeError):
            hub = _common.hub_from_environment(backoff=iothub.Backoff(tries=1))
            if hub is not None:
                await stack.enter_async_context(hub)
                secrets.append(_hub_key())
                findings += await checks.check_hub(hub, ca_file=_common.hub_ca_file())
        entries = await bundle.collect(
            bundle.Sources(
                client=client,
                hub=hub,
                findings=findings,
                log_files=sorted((_common.site_directory() / "logs").glob("*.log")),
                secrets=secrets,
            )
        )
    await bundle.write(target, entries, name=name)
    return len(entries), [line for line in entries["failures.txt"].split("\n") if line]


def _hub_key():  # type: ignore[no-untyped-def]  # noqa: ANN202
    """Return the key of the connection string in use."""
    import os

    from kvedge.redact import Secret

    text = Path(os.environ["KVEDGE_HUB_CONNECTION_STRING_FILE"]).read_text(encoding="utf-8")
    found = re.search(r"SharedAccessKey=([^;\s]+)", text)
    return Secret(found[1] if found else "")
