"""`kvedge node`: run a virtual node on a provider of pods; takes Virtual Kubelet's names too."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from kvedge import errors

__all__ = ["node"]


@click.group()
def node() -> None:
    """Run a virtual node."""


@node.command()
@click.option(
    "--provider",
    type=click.Choice(["mock"]),
    default="mock",
    show_default=True,
    help="What runs the pods; the IoT Edge provider is `kvedge connector run`.",
)
@click.option(
    "--provider-config",
    type=click.Path(path_type=Path),
    help="JSON with each node's cpu, memory and pods.",
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
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path),
    help="Kubeconfig file; default KUBECONFIG, else the pod's account.",
)
@click.option(
    "--address",
    envvar=["VKUBELET_POD_IP", "POD_IP"],
    default="127.0.0.1",
    show_default=True,
    help="Address of the node.",
)
@click.option(
    "--kubelet-port",
    envvar="KUBELET_PORT",
    type=click.IntRange(0, 65535),
    default=10250,
    show_default=True,
    help="Port of the kubelet API.",
)
@click.option("--disable-taint", is_flag=True, help="Do not keep other pods off the node.")
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
    "--unsafe-anonymous-reads",
    is_flag=True,
    help="Let anybody read pods, statistics and metrics; for test suites only.",
)
@click.option(
    "--log-level",
    envvar="KVEDGE_LOG_LEVEL",
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
)
@click.option("--pod-sync-workers", hidden=True, expose_value=False, help="Taken, not needed.")
@click.option("--full-resync-period", hidden=True, expose_value=False, help="Taken, not needed.")
@click.option("--startup-timeout", hidden=True, expose_value=False, help="Taken, not needed.")
@click.option("--metrics-addr", hidden=True, expose_value=False, help="Taken, not needed.")
@click.option("--os", "_os", hidden=True, expose_value=False, help="Taken, not needed.")
def run(
    provider: str,
    provider_config: Path | None,
    node_name: str,
    nodes: int,
    kubeconfig: Path | None,
    address: str,
    kubelet_port: int,
    disable_taint: bool,
    latency: float,
    linger: float,
    leader_elect_namespace: str,
    unsafe_anonymous_reads: bool,
    log_level: str,
) -> None:  # fmt: skip
    """Run one or more virtual nodes in this process."""
    import uvloop

    from kvedge import kube
    from kvedge.node import mock, running
    from kvedge.node.node_object import NodeSpec

    del provider
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname).1s %(name)s: %(message)s"
    )
    config = kube.load_config(kubeconfig)
    names = [node_name] if nodes == 1 else [f"{node_name}-{index}" for index in range(nodes)]

    def made(name: str, port: int) -> running.VirtualNode:
        return running.VirtualNode(
            config=config,
            spec=NodeSpec(
                name=name,
                address=address or "127.0.0.1",
                port=port,
                provider="mock",
                capacity=mock.load_capacity(provider_config, name),
                taint=_taint(),
                no_taint=disable_taint,
            ),
            provider=mock.MockProvider(latency_seconds=latency),
            serving=running.Serving(
                listen=address or "0.0.0.0",
                port=port,
                certificate=_file("APISERVER_CERT_LOCATION"),
                key=_file("APISERVER_KEY_LOCATION"),
                client_ca=_file("APISERVER_CA_CERT_LOCATION"),
                unsafe_anonymous_reads=unsafe_anonymous_reads,
            ),
            linger_seconds=linger,
            leader_namespace=leader_elect_namespace,
        )

    ports = [kubelet_port + index if kubelet_port else 0 for index in range(len(names))]
    made_nodes = [made(name, port) for name, port in zip(names, ports, strict=True)]
    if not uvloop.run(running.run_all(made_nodes)):
        raise errors.KvedgeError(
            f"node {node_name!r} is led by another replica now", hint="this one starts again"
        )


def _taint() -> tuple[str, str, str] | None:
    key = os.environ.get("VKUBELET_TAINT_KEY", "virtual-kubelet.io/provider")
    value = os.environ.get("VKUBELET_TAINT_VALUE", "mock")
    effect = os.environ.get("VKUBELET_TAINT_EFFECT", "NoSchedule")
    return key, value, effect


def _file(variable: str) -> Path | None:
    value = os.environ.get(variable, "")
    return Path(value) if value else None
