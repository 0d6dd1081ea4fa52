"""The hub's device side: MQTT 3.1.1 in IoT Hub's dialect, where each client talks to the hub only.

Why this is no off-the-shelf broker: docs/decisions, "The hub speaks MQTT by itself".
"""

from kvedge.emulator.mqtt.serving import MqttServer

__all__ = ["MqttServer"]
