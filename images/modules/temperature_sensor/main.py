# ruff: noqa: INP001, T201 - a program of its own, whose output is the module's log
"""A simulated temperature sensor as an IoT Edge module.

It sends one JSON reading every MESSAGE_INTERVAL_SECONDS (default 5; the desired property
`intervalSeconds` goes before it), reports what it does in its twin, answers the direct method
`reset`, and ends on SIGTERM. Needs azure-iot-device and a Python from 3.10 on.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from azure.iot.device import IoTHubModuleClient

_DEFAULT_SECONDS: Final = 5.0
_START_CELSIUS: Final = 21.0
_RETRY_SECONDS: Final = 3.0
"""After a restart of the VM the edge hub may serve later than its modules start."""
_VENDOR: Final = Path(__file__).with_name("vendor.zip")


class Machine:
    """A machine that warms up while it runs."""

    def __init__(self) -> None:
        self._celsius = _START_CELSIUS
        self._random = random.Random()  # noqa: S311 - a simulation needs no secrets

    def reset(self) -> None:
        """Cool the machine down to where it began."""
        self._celsius = _START_CELSIUS

    def reading(self) -> dict[str, Any]:
        """Return the next reading."""
        self._celsius += self._random.uniform(-0.2, 0.6) if self._celsius < 100 else -5
        return {
            "machine": {
                "temperature": round(self._celsius, 2),
                "pressure": round(1 + (self._celsius - _START_CELSIUS) / 7, 3),
            },
            "ambient": {"temperature": _START_CELSIUS, "humidity": self._random.randint(24, 28)},
            "timeCreated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }


def interval_seconds(value: object, default: float) -> float:
    """Return a setting as seconds, or the default when it is none."""
    try:
        seconds = float(str(value))
    except ValueError:
        return default
    return seconds if seconds > 0 else default


class Sensor:
    """Joins the machine to the edge hub."""

    def __init__(self, client: IoTHubModuleClient, *, seconds: float) -> None:
        self._client = client
        self._machine = Machine()
        self._default_seconds = seconds
        self._seconds = seconds
        self._sent = 0
        self._stop = threading.Event()

    def stop(self, *_: object) -> None:
        """End `run` soon."""
        self._stop.set()

    def run(self) -> None:
        """Send readings until stopped."""
        from azure.iot.device import Message

        while not self._stop.is_set() and not self._begin():
            self._stop.wait(_RETRY_SECONDS)
        while not self._stop.is_set():
            message = Message(json.dumps(self._machine.reading()))
            message.content_type = "application/json"
            message.content_encoding = "utf-8"
            self._client.send_message_to_output(message, "temperature")
            self._sent += 1
            print(f"sent reading {self._sent}: {message.data}", flush=True)
            self._stop.wait(self._seconds)

    def _begin(self) -> bool:
        """Connect and take the twin; False if the edge hub does not serve yet."""
        from azure.iot.device.exceptions import ClientError

        try:
            self._client.connect()
            self._client.on_twin_desired_properties_patch_received = self._desired
            self._client.on_method_request_received = self._method
            self._desired(self._client.get_twin().get("desired") or {})
        except ClientError as error:
            print(f"sensor: {error or type(error).__name__}; trying again", flush=True)
            return False
        return True

    def _desired(self, desired: dict[str, Any]) -> None:
        if "intervalSeconds" in desired or "$version" in desired:
            wanted = desired.get("intervalSeconds", self._default_seconds)
            self._seconds = interval_seconds(wanted, self._default_seconds)
        self._client.patch_twin_reported_properties({"intervalSeconds": self._seconds})

    def _method(self, request: Any) -> None:
        from azure.iot.device import MethodResponse

        if request.name == "reset":
            self._machine.reset()
            answer = MethodResponse(request.request_id, 200, {"sent": self._sent})
        else:
            answer = MethodResponse(
                request.request_id, 404, {"message": f"method {request.name!r} is not known"}
            )
        self._client.send_method_response(answer)


def main() -> int:
    """Run the module; 1 when the edge hub cannot be reached."""
    if _VENDOR.exists():
        sys.path.insert(0, str(_VENDOR))
    # The client's HTTP half looks for a library that guesses character sets and does without.
    warnings.filterwarnings("ignore", message="Unable to find acceptable character detection")
    from azure.iot.device import IoTHubModuleClient

    seconds = interval_seconds(os.environ.get("MESSAGE_INTERVAL_SECONDS"), _DEFAULT_SECONDS)
    client = IoTHubModuleClient.create_from_edge_environment(connection_retry_interval=3)
    sensor = Sensor(client, seconds=seconds)
    signal.signal(signal.SIGTERM, sensor.stop)
    signal.signal(signal.SIGINT, sensor.stop)
    try:
        sensor.run()
    except Exception as error:  # noqa: BLE001 - the agent restarts a module that ends
        print(f"sensor: {error or type(error).__name__}", file=sys.stderr, flush=True)
        os._exit(1)
    # The device client leaves threads behind that would hold the process for seconds.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
