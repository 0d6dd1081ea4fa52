"""The virtual node: everything between the API server and a provider that runs pods.

Decides when a pod is created, changed, deleted and reported, keeps the node object and its lease,
and serves the kubelet's HTTPS API. What running a pod means is left to the provider.
"""

from kvedge.node.node_object import NodeSpec
from kvedge.node.pods import PodEngine
from kvedge.node.provider import (
    Attaches,
    Executes,
    Forwards,
    Health,
    LogOptions,
    Outcome,
    Provider,
    Reporter,
    Stream,
    Terminal,
    TerminalSize,
    Usage,
    Work,
)
from kvedge.node.runtime import Tasks

__all__ = [
    "Attaches",
    "Executes",
    "Forwards",
    "Health",
    "LogOptions",
    "NodeSpec",
    "Outcome",
    "PodEngine",
    "Provider",
    "Reporter",
    "Stream",
    "Tasks",
    "Terminal",
    "TerminalSize",
    "Usage",
    "Work",
]
