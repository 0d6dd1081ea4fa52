"""The only room that talks to Kubernetes: raw dicts, no client-side rate limit.

Decides how a cluster is found, how requests are signed and how watches go on after a break.
Leaves to its callers what the objects mean.
"""

from kvedge.kube.client import Client, Event
from kvedge.kube.config import Config, load_config

__all__ = ["Client", "Config", "Event", "load_config"]
