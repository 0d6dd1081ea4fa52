"""An IoT Hub on this machine: REST, MQTT and automatic edge deployments.

Stands in for Azure IoT Hub where there is no cloud; the vendor's own clients drive it unchanged.
What it does, what it does otherwise and what it refuses: docs/reference/emulator.md.
It imports nothing of kvedge but names and errors, so that no mistake is shared with the client.
"""

from kvedge.emulator.faults import Knobs
from kvedge.emulator.hub import Hub, Settings

__all__ = ["Hub", "Knobs", "Settings"]
