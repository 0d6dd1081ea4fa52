"""`kvedge node`: run a virtual node on a provider of pods; takes Virtual Kubelet's names too."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from kvedge import errors
from kvedge.cli._nodes import node_options, serving_of, start_logging, taint_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvedge.node import Provider

__all__ = ["node"]

_UNUSED = (
    "cluster-domain", "enable-node-lease", "full-resync-period", "klog.v", "metrics-addr",
    "namespace", "pod-sync-workers", "startup-timeout", "stream-creation-timeout",
    "stream-idle-timeout", "trace-exporter", "trace-sample-rate", "trace-service-name",
    "trace-tag",
)  # fmt: skip
"""Flags of Go's command line that have no counterpart: taken, so that manifests still start."""


_PATIENCE_SECONDS = 15.0
"""How long a replica leaves a free node to the one whose share it is."""


@click.group()
def node() -> None:
    """Run a virtual node."""


def _with_unused(command: Callable[..., Any]) -> Callable[..., Any]:
    for name in _UNUSED:
        option = click.option(
            f"--{name}", hidden=True, expose_value=False, is_flag=False, flag_value="true"
        )
        command = option(command)
    return command


@node.command()
@click.option(
    "--provider",
    type=click.Choice(["mock", "iotedge", "web", "interlink"]),
    default="mock",
    show_default=True,
    help="What runs the pods; iotedge is `kvedge connector run` with its variables.",
)
@click.option(
    "--provider-config",
    type=click.Path(path_type=Path),
    help="JSON with each node's cpu, memory and pods.",
)
@click.option(
    "--endpoint",
    envvar="WEB_ENDPOINT_URL",
    default="",
    help="For web: a broker of Virtual Kubelet's web provider. For interlink: a plugin.",
)
@click.option(
    "--endpoint-token-file",
    envvar="KVEDGE_ENDPOINT_TOKEN_FILE",
    type=click.Path(path_type=Path),
    help="File with the bearer token for the endpoint.",
)
@click.option(
    "--node-name",
    "--nodename",
    envvar="DEFAULT_NODE_NAME",
    default="virtual-kubelet",
    show_default=True,
    help="Name of the node.",
)
@click.option(
    "--nodes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="So many nodes, named NAME-0, NAME-1 and so on if more than one.",
)
@click.option("--os", "system", default="linux", help="Operating system that the node names.")
@click.option("--taint", "taint_key", default="", hidden=True, help="Key of the taint.")
@click.option(
    "--latency",
    type=click.FloatRange(0),
    default=0.0,
    help="Seconds that the mock takes to create or delete a pod.",
)
@click.option(
    "--linger",
    type=click.FloatRange(0),
    default=0.0,
    help="Seconds that a deleted pod's object stays visible.",
)
@click.option(
    "--leader-elect-namespace",
    envvar="KVEDGE_LEADER_NAMESPACE",
    default="",
    help="Elect a leader among replicas by a Lease in this namespace.",
)
@click.option(
    "--shard",
    envvar="KVEDGE_SHARD",
    default="",
    help="I/N: this replica is the I-th of N (from 0) and leads its share of the nodes first.",
)
@node_options
@_with_unused
def run(
    provider: str,
    provider_config: Path | None,
    endpoint: str,
    endpoint_token_file: Path | None,
    node_name: str,
    nodes: int,
    system: str,
    taint_key: str,
    latency: float,
    linger: float,
    leader_elect_namespace: str,
    shard: str,
    kubeconfig: Path | None,
    address: str,
    kubelet_port: int,
    disable_taint: bool,
    log_level: str,
    **serving: Any,
) -> None:  # fmt: skip
    """Run one or more virtual nodes in this process."""
    if provider == "iotedge":
        _run_connector(click.get_current_context())
        return
    import uvloop

    from kvedge import kube
    from kvedge.node import mock, running
    from kvedge.node.node_object import NodeSpec

    start_logging(log_level)
    share = _share(shard)
    config = kube.load_config(kubeconfig)
    names = [node_name] if nodes == 1 else [f"{node_name}-{index}" for index in range(nodes)]
    token = _token(endpoint_token_file)
    described = _described(provider, endpoint, token)
    key, value, effect = taint_of(provider)

    def made(name: str, port: int) -> running.VirtualNode:
        return running.VirtualNode(
            config=config,
            spec=NodeSpec(
                name=name,
                address=address or "127.0.0.1",
                port=port,
                provider=provider,
                capacity=described or mock.load_capacity(provider_config, name),
                taint=(taint_key or key, value, effect),
                no_taint=disable_taint,
                operating_system=system.lower(),
            ),
            provider=_provider(provider, endpoint, token, latency),
            serving=serving_of(address=address, kubelet_port=port, **serving),
            linger_seconds=linger,
            leader_namespace=leader_elect_namespace,
            patience_seconds=0.0 if _is_home(name, share) else _PATIENCE_SECONDS,
        )

    ports = [kubelet_port + index if kubelet_port else 0 for index in range(len(names))]
    made_nodes = [made(name, port) for name, port in zip(names, ports, strict=True)]
    if not uvloop.run(running.run_all(made_nodes)):
        raise errors.KvedgeError(
            f"node {node_name!r} is led by another replica now", hint="this one starts again"
        )


def _run_connector(context: click.Context) -> None:
    """Run the connector with what both commands have; the rest comes from its variables."""
    from kvedge.cli.connector import run as connector

    known = {option.name for option in connector.params}
    given = {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE and name != "provider"
    }
    if given.pop("system", "linux").lower() != "linux":
        raise click.UsageError("devices of provider iotedge run Linux")
    if strange := sorted(given.keys() - known):
        option = strange[0].replace("_", "-").removesuffix("-key")
        raise click.UsageError(f"--{option} is not for provider iotedge")
    with connector.make_context("run", [], parent=context) as inner:
        inner.params |= given
        connector.invoke(inner)


def _share(text: str) -> tuple[int, int]:
    """Return the number of this replica and of all."""
    index, _, count = (text or "0/1").partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise errors.KvedgeError(
            f"--shard {text!r} is not I/N", hint="the first of three replicas is 0/3"
        )
    return int(index), int(count)


def _is_home(name: str, share: tuple[int, int]) -> bool:
    """Tell whether a node belongs to this replica first."""
    return zlib.crc32(name.encode()) % share[1] == share[0]


def _provider(name: str, endpoint: str, token: str, latency: float) -> Provider:
    if name == "mock":
        from kvedge.node.mock import MockProvider

        return MockProvider(latency_seconds=latency)
    from kvedge.node import web

    if not endpoint:
        raise errors.KvedgeError(
            f"provider {name!r} has no endpoint", hint="set --endpoint or WEB_ENDPOINT_URL"
        )
    kind = web.BrokerProvider if name == "web" else web.InterLinkProvider
    return kind(endpoint, token=token)


def _described(provider: str, endpoint: str, token: str) -> dict[str, str]:
    """Return the capacity that a broker tells; other providers tell none."""
    if provider != "web":
        return {}
    import asyncio

    from kvedge.node.web import BrokerProvider

    made = _provider(provider, endpoint, token, 0.0)
    assert isinstance(made, BrokerProvider)
    return asyncio.run(made.describe())


def _token(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as cause:
        raise errors.KvedgeError(
            f"cannot read {str(path)!r}: {cause.strerror}",
            hint="it is the file with the endpoint's token",
        ) from cause
