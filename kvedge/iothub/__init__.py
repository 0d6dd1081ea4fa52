"""The service side of one IoT Hub: identities, twins, deployments, queries and direct methods.

A narrow asynchronous face over the vendor's azure-iot-hub package. This room decides how requests
are paced, retried and reported; what is written to the hub is decided by the callers.
"""

from kvedge.iothub.budget import UNLIMITED, Budget, Lane
from kvedge.iothub.failing import Backoff
from kvedge.iothub.hub import Hub

__all__ = ["UNLIMITED", "Backoff", "Budget", "Hub", "Lane"]
