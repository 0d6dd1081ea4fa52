"""Reaching into edge VMs: ssh with pinned host keys, console, screen, start and stop.

The way is the Kubernetes API's websocket or a LoadBalancer address; no virtctl is needed. A host
key is never learnt at first use: it comes from the VM object, where the provisioning program put it
before the first boot.
"""

from kvedge.access.guests import Guest, find_guest, find_guests, service_address
from kvedge.access.sessions import Session, connect
from kvedge.access.targets import CONSOLE, SCREEN, Channel, Target, parse_target, tcp
from kvedge.access.tunnels import forward, local_socket, serve_stdio

__all__ = [
    "CONSOLE",
    "SCREEN",
    "Channel",
    "Guest",
    "Session",
    "Target",
    "connect",
    "find_guest",
    "find_guests",
    "forward",
    "local_socket",
    "parse_target",
    "serve_stdio",
    "service_address",
    "tcp",
]
