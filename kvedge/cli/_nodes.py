"""What every command that runs a virtual node takes: its place, its port, its taint, its log.

The names are Virtual Kubelet's where it has one, so that its manifests and scripts go on working.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvedge.node.running import Serving

__all__ = ["node_options", "serving_of", "start_logging", "taint_of"]

_LEVELS = {
    "trace": "DEBUG", "debug": "DEBUG", "info": "INFO", "warn": "WARNING", "warning": "WARNING",
    "error": "ERROR", "fatal": "CRITICAL", "panic": "CRITICAL",
}  # fmt: skip
_OPTIONS = (
    click.option(
        "--kubeconfig",
        type=click.Path(path_type=Path),
        help="Kubeconfig file; default KUBECONFIG, else the pod's account.",
    ),
    click.option(
        "--address",
        envvar=["VKUBELET_POD_IP", "POD_IP"],
        default="",
        help="Address of the node, where the kubelet API listens; default 127.0.0.1.",
    ),
    click.option(
        "--kubelet-port",
        envvar="KUBELET_PORT",
        type=click.IntRange(0, 65535),
        default=10250,
        show_default=True,
        help="Port of the kubelet API.",
    ),
    click.option(
        "--disable-taint",
        envvar="KVEDGE_DISABLE_TAINT",
        is_flag=True,
        help="Do not keep other pods off the node.",
    ),
    click.option(
        "--serving-certificate",
        envvar="KVEDGE_SERVING_CERTIFICATE",
        type=click.Choice(["self-signed", "csr"]),
        default="self-signed",
        show_default=True,
        help="csr asks the cluster's signer kubernetes.io/kubelet-serving, and again in good time.",
    ),
    click.option(
        "--unsafe-anonymous-reads",
        is_flag=True,
        help="Let anybody read pods, statistics and metrics; for test suites only.",
    ),
    click.option(
        "--log-level",
        envvar="KVEDGE_LOG_LEVEL",
        default="info",
        show_default=True,
        type=click.Choice(list(_LEVELS), case_sensitive=False),
    ),
)


def node_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def serving_of(
    *, address: str, kubelet_port: int, serving_certificate: str, unsafe_anonymous_reads: bool
) -> Serving:
    """Return how the kubelet API is served; files are named as for Virtual Kubelet."""
    from kvedge.node.running import Serving

    return Serving(
        listen=address or "0.0.0.0",
        port=kubelet_port,
        certificate=_file("APISERVER_CERT_LOCATION"),
        key=_file("APISERVER_KEY_LOCATION"),
        client_ca=_file("APISERVER_CA_CERT_LOCATION"),
        request_certificate=serving_certificate == "csr",
        unsafe_anonymous_reads=unsafe_anonymous_reads,
    )


def taint_of(provider: str) -> tuple[str, str, str]:
    """Return key, value and effect of the node's taint, as the environment says."""
    return (
        os.environ.get("VKUBELET_TAINT_KEY", "virtual-kubelet.io/provider"),
        os.environ.get("VKUBELET_TAINT_VALUE", provider),
        os.environ.get("VKUBELET_TAINT_EFFECT", "NoSchedule"),
    )


def start_logging(level: str) -> None:
    """Write the log to standard error."""
    logging.basicConfig(
        level=_LEVELS[level], format="%(asctime)s %(levelname).1s %(name)s: %(message)s"
    )


def _file(variable: str) -> Path | None:
    value = os.environ.get(variable, "")
    return Path(value) if value else None
