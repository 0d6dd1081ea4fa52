"""Checks that the images of managed VMs can still be pulled from where they came."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from images import registry
from kvedge import errors, names
from kvedge.survey.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kvedge import kube

__all__ = ["check_images"]

_PATH = "/apis/cdi.kubevirt.io/v1beta1/datavolumes"


async def check_images(
    client: kube.Client, *, hosts: Mapping[str, str], ca_file: Path | None = None
) -> list[Finding]:
    """Ask the registries for every image that a managed disk is imported from.

    Args:
        hosts: a registry's name in the cluster -> its name here, where they differ.
        ca_file: authority of those registries; else the system's.
    """
    try:
        listed = await client.get(_PATH, labelSelector=f"{names.LABEL_MANAGED}=kvedge")
    except errors.NotFound:
        return []  # the finding about CDI says it
    except errors.RemoteError as error:
        return [Finding(check="images", state="fail", found=error.message, fix=error.hint)]
    urls = {
        str(source["url"]).removeprefix("docker://")
        for disk in listed["items"]
        if (source := disk["spec"].get("source", {}).get("registry")) and source.get("url")
    }
    if not urls:
        return [Finding(check="images", state="ok", found="no managed VM has one yet")]
    return [
        await asyncio.to_thread(_check, url, hosts, ca_file if _host(url) in hosts else None)
        for url in sorted(urls)
    ]


def _host(url: str) -> str:
    return url.partition("/")[0]


def _check(url: str, hosts: Mapping[str, str], ca_file: Path | None) -> Finding:
    host, _, rest = url.partition("/")
    check = f"image {rest.partition('@')[0]}"
    try:
        registry.resolve(f"{hosts.get(host, host)}/{rest}", ca_file=ca_file)
    except errors.NotFound:
        return Finding(
            check=check, state="fail", found=f"{host} has no {rest!r}",
            fix="push it again: kvedge up STACK builds and pushes what is missing",
        )  # fmt: skip
    except errors.KvedgeError as error:
        return Finding(
            check=check, state="fail", found=error.message,
            fix=error.hint or f"is the registry {host!r} running and reachable from here?",
        )  # fmt: skip
    return Finding(check=check, state="ok", found=f"{host} has it")
