"""The IoT Edge provider: pods of a virtual node become deployments of one IoT Hub.

Decides when a deployment is written, adopted, superseded and retired, and how often the hub is
asked. What a deployment holds is decided by kvedge.edge, when pods come and go by kvedge.node.
"""

from kvedge.connector.provider import IotEdgeProvider
from kvedge.connector.settings import Settings

__all__ = ["IotEdgeProvider", "Settings"]
