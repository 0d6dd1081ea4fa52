"""`kvedge connector`: run the IoT Edge connector, a virtual node on an IoT Hub."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from kvedge import errors
from kvedge.redact import Secret, redacted

__all__ = ["connector"]

_POD = ("VKUBELET_POD_IP", "POD_IP")


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
    "--kubeconfig",
    type=click.Path(path_type=Path),
    help="Kubeconfig file; default KUBECONFIG, else the pod's account.",
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
@click.option("--address", envvar=list(_POD), default="", help="Address of this pod.")
@click.option(
    "--kubelet-port",
    envvar="KUBELET_PORT",
    type=click.IntRange(0, 65535),
    default=10250,
    show_default=True,
    help="Port of the kubelet API.",
)
@click.option(
    "--leader-elect/--no-leader-elect",
    envvar="KVEDGE_LEADER_ELECT",
    default=None,
    help="Let one of several replicas lead; default: inside a pod only.",
)
@click.option("--disable-taint", is_flag=True, help="Do not keep other pods off the node.")
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
def run(
    node_name: str,
    kubeconfig: Path | None,
    hub_connection_string_file: Path | None,
    hub_ca_file: Path | None,
    leader_elect: bool | None,
    address: str,
    kubelet_port: int,
    unsafe_anonymous_reads: bool,
    disable_taint: bool,
    default_target_condition: str,
    log_level: str,
    **rest: object,
) -> None:  # fmt: skip
    """Run a virtual node whose pods become deployments of an IoT Hub."""
    import uvloop

    from kvedge.connector.running import ConnectorOptions
    from kvedge.connector.running import run as run_connector
    from kvedge.node.running import Serving

    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname).1s %(name)s: %(message)s"
    )
    logging.getLogger("azure").setLevel(logging.WARNING)
    logging.getLogger("msrest").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    in_pod = bool(os.environ.get("POD_NAME"))
    elect = in_pod if leader_elect is None else leader_elect
    serving = Serving(
        listen=address or "0.0.0.0",
        port=kubelet_port,
        certificate=_file("APISERVER_CERT_LOCATION"),
        key=_file("APISERVER_KEY_LOCATION"),
        client_ca=_file("APISERVER_CA_CERT_LOCATION"),
        unsafe_anonymous_reads=unsafe_anonymous_reads,
    )
    options = ConnectorOptions(
        node_name=node_name,
        connection_string=_connection_string(hub_connection_string_file),
        hub_ca=hub_ca_file,
        address=address or "127.0.0.1",
        kubeconfig=kubeconfig,
        serving=serving,
        leader_namespace=os.environ.get("POD_NAMESPACE", "default") if elect else "",
        default_condition=default_target_condition,
        no_taint=disable_taint,
        **rest,  # type: ignore[arg-type]
    )
    uvloop.run(run_connector(options))


def _connection_string(path: Path | None) -> Secret:
    text = os.environ.get("HUB_CONNECTION_STRING", "").strip()
    if text:
        return Secret(text)
    if path is None:
        raise errors.KvedgeError(
            "no hub is given", hint="set HUB_CONNECTION_STRING or --hub-connection-string-file"
        )
    try:
        return Secret(path.read_text(encoding="utf-8").strip())
    except OSError as cause:
        raise errors.KvedgeError(
            f"cannot read {redacted(str(path))!r}: {cause.strerror}",
            hint="it is the file with the hub's connection string",
        ) from cause


def _file(variable: str) -> Path | None:
    value = os.environ.get(variable, "")
    return Path(value) if value else None
