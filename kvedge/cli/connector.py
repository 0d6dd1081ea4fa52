"""`kvedge connector`: run the IoT Edge connector, a virtual node on an IoT Hub."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from kvedge import errors
from kvedge.cli._nodes import node_options, serving_of, start_logging, taint_of
from kvedge.redact import Secret

__all__ = ["connector"]


@click.group()
def connector() -> None:
    """Run the IoT Edge connector."""


@connector.command()
@click.option(
    "--node-name",
    "--nodename",
    envvar=["NODE_NAME", "DEFAULT_NODE_NAME"],
    default="iot-edge-connector-hub0",
    show_default=True,
    help="Name of the node.",
)
@click.option(
    "--nodes-file",
    envvar="KVEDGE_NODES_FILE",
    type=click.Path(path_type=Path),
    help="File with several nodes, each on a hub; then the options of one node do not count.",
)
@click.option(
    "--namespace",
    envvar="KVEDGE_NAMESPACE",
    default="",
    help="Take pods of this namespace only.",
)
@click.option(
    "--exec-key-file",
    "exec_key",
    envvar="KVEDGE_EXEC_KEY_FILE",
    type=click.Path(path_type=Path),
    help="Private ssh key for kubectl exec into VMs of this cluster; without it exec is refused.",
)
@click.option(
    "--exec-user",
    envvar="KVEDGE_EXEC_USER",
    default="edge",
    show_default=True,
    help="User in those VMs.",
)
@click.option(
    "--hub-connection-string-file",
    envvar="KVEDGE_HUB_CONNECTION_STRING_FILE",
    type=click.Path(path_type=Path),
    help="File with the hub's connection string; default HUB_CONNECTION_STRING.",
)
@click.option(
    "--hub-ca-file",
    envvar="KVEDGE_HUB_CA_FILE",
    type=click.Path(path_type=Path),
    help="Authority of the hub's certificate, if it is not a public one.",
)
@click.option(
    "--hub-units",
    envvar="KVEDGE_HUB_UNITS",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="The hub's units, for its quotas; 0 for a hub without.",
)
@click.option(
    "--cluster-id",
    envvar="KVEDGE_CLUSTER_ID",
    default="",
    help="Owner of the deployments; default the UID of namespace kube-system.",
)
@click.option(
    "--poll-seconds",
    envvar="KVEDGE_POLL_SECONDS",
    type=click.FloatRange(0.1),
    default=15.0,
    show_default=True,
    help="How often device reports are read.",
)
@click.option(
    "--handover-seconds",
    envvar="KVEDGE_HANDOVER_SECONDS",
    default=5.0,
    type=click.FloatRange(0),
    show_default=True,
    help="How long a deleted pod's deployment waits for the workload's next pod.",
)
@click.option(
    "--orphan-seconds",
    envvar="KVEDGE_ORPHAN_SECONDS",
    default=60.0,
    type=click.FloatRange(0),
    show_default=True,
    help="How long a deployment without any pod stays.",
)
@click.option(
    "--default-target-condition",
    envvar="KVEDGE_DEFAULT_TARGET",
    default="",
    help="Target condition of pods that name none; empty refuses them.",
)
@click.option(
    "--leader-elect/--no-leader-elect",
    envvar="KVEDGE_LEADER_ELECT",
    default=None,
    help="Let one of several replicas lead; default: inside a pod only.",
)
@node_options
def run(
    node_name: str,
    nodes_file: Path | None,
    kubeconfig: Path | None,
    hub_units: int,
    hub_connection_string_file: Path | None,
    hub_ca_file: Path | None,
    leader_elect: bool | None,
    address: str,
    kubelet_port: int,
    serving_certificate: str,
    unsafe_anonymous_reads: bool,
    disable_taint: bool,
    default_target_condition: str,
    log_level: str,
    **rest: object,
) -> None:  # fmt: skip
    """Run a virtual node whose pods become deployments of an IoT Hub."""
    import uvloop

    from kvedge.connector.nodes import NodeOptions, nodes_from_file
    from kvedge.connector.running import ConnectorOptions
    from kvedge.connector.running import run as run_connector

    start_logging(log_level)
    logging.getLogger("azure").setLevel(logging.WARNING)
    logging.getLogger("msrest").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    in_pod = bool(os.environ.get("POD_NAME"))
    elect = in_pod if leader_elect is None else leader_elect
    serving = serving_of(
        address=address,
        kubelet_port=kubelet_port,
        serving_certificate=serving_certificate,
        unsafe_anonymous_reads=unsafe_anonymous_reads,
    )
    string, file = _connection_string(hub_connection_string_file, nodes_file)
    one = NodeOptions(
        name=node_name,
        connection_string=string,
        connection_string_file=file,
        hub_units=hub_units,
        default_condition=default_target_condition,
    )
    options = ConnectorOptions(
        nodes=nodes_from_file(nodes_file) if nodes_file else (one,),
        hub_ca=hub_ca_file,
        address=address or "127.0.0.1",
        kubeconfig=kubeconfig,
        serving=serving,
        leader_namespace=os.environ.get("POD_NAMESPACE", "default") if elect else "",
        taint=taint_of("iotedge"),
        no_taint=disable_taint,
        **rest,  # type: ignore[arg-type]
    )
    uvloop.run(run_connector(options))


def _connection_string(file: Path | None, nodes_file: Path | None) -> tuple[Secret, Path | None]:
    """Return the hub's connection string and, if it is from one, its file."""
    from kvedge.connector.nodes import read_secret

    text = os.environ.get("HUB_CONNECTION_STRING", "").strip()
    if text or nodes_file:
        return Secret(text), None
    if file is None:
        raise errors.KvedgeError(
            "no hub is given", hint="set HUB_CONNECTION_STRING or --hub-connection-string-file"
        )
    return read_secret(file), file
