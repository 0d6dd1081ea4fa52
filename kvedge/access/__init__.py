"""Reaching into edge VMs: ssh with pinned host keys and port-forward, over the Kubernetes API.

No virtctl and no OpenSSH are needed. A host key is never learnt at first use: it comes from the
VM object, where the provisioning program put it before the first boot.
"""

from kvedge.access.sessions import Session, connect
from kvedge.access.targets import Target, parse_target
from kvedge.access.tunnels import forward, local_socket, serve_stdio

__all__ = [
    "Session",
    "Target",
    "connect",
    "forward",
    "local_socket",
    "parse_target",
    "serve_stdio",
]
