"""Every error that the hub answers, with the service's own codes, names and texts.

A handler raises `HubError`; the HTTPS side writes it as the service does: a JSON body with
`Message` and `ExceptionMessage`, and the code's name in the header `iothub-errorcode`.
Codes and names are those of the service's C# SDK (Azure/azure-iot-sdk-csharp, ErrorCode.cs).
"""

from __future__ import annotations

import dataclasses
import json
import secrets

from kvedge.emulator import times

__all__ = ["CODES", "Code", "HubError", "body", "method_error"]


@dataclasses.dataclass(frozen=True, slots=True)
class Code:
    """One row of the catalogue."""

    name: str
    """What the header `iothub-errorcode` says."""
    status: int
    """HTTP status."""
    number: int
    """The service's six digits; 0 where the service publishes none."""
    text: str
    """The message when the place that raises the error gives none."""


_ROWS = (
    Code("ArgumentInvalid", 400, 400004, "The argument is invalid."),
    Code("IotHubFormatError", 400, 400006, "The request could not be understood."),
    Code("InvalidProtocolVersion", 400, 400001, "The api-version is missing or unknown."),
    Code("BulkRegistryOperationFailure", 400, 400013, "Some of the operations failed."),
    Code(
        "InvalidConfigurationTargetCondition",
        400,
        0,
        "Invalid targetCondition. It must be a filter condition based on 'deviceId', 'tags', "
        "or 'properties.reported'.",
    ),
    Code(
        "InvalidConfigurationContent",
        400,
        0,
        "The content provided for configuration is invalid. Please check and try again",
    ),
    Code("InvalidConfigurationCustomMetricsQuery", 400, 0, "A custom metric query is invalid."),
    Code("IotHubUnauthorized", 401, 401003, "Unauthorized"),
    Code("IotHubUnauthorizedAccess", 401, 401002, "Unauthorized"),
    Code(
        "SystemModuleModifyUnauthorizedAccess",
        401,
        0,
        "Modules that belong to the edge runtime cannot be made or removed.",
    ),
    Code("IotHubQuotaExceeded", 403, 403002, "The quota of the hub is used up."),
    Code("DeviceMaximumQueueDepthExceeded", 403, 403004, "The device's queue is full."),
    Code("DeviceModelMaxPropertiesExceeded", 403, 403100, "The twin is too large."),
    Code("DeviceNotFound", 404, 404001, "The device is not registered."),
    Code("ModuleNotFound", 404, 404010, "The module is not registered."),
    Code("ConfigurationNotFound", 404, 404011, "The configuration does not exist."),
    Code("EnrollmentNotFound", 404, 404201, "The enrollment does not exist."),
    Code("OperationNotFound", 404, 404202, "The registration does not exist."),
    Code("JobNotFound", 404, 404012, "The job does not exist."),
    Code("NotFound", 404, 404000, "There is nothing at this address."),
    Code(
        "DeviceNotOnline",
        404,
        404103,
        "The operation failed because the requested device isn't online or hasn't registered "
        "the direct method callback.",
    ),
    Code("MethodNotAllowed", 405, 405000, "The method does not fit this address."),
    Code("RequestTimeout", 408, 408000, "The request took too long to arrive."),
    Code("DeviceAlreadyExists", 409, 409001, "The device is already registered."),
    Code(
        "ModuleAlreadyExistsOnDevice",
        409,
        409301,
        "The module is already registered on the device.",
    ),
    Code("ConfigurationAlreadyExists", 409, 409012, "The configuration already exists."),
    Code("JobAlreadyExists", 409, 409014, "The job already exists."),
    Code("PreconditionFailed", 412, 412001, "Precondition failed."),
    Code("MessageTooLarge", 413, 413001, "The message is too large."),
    Code("TooManyDevices", 413, 413002, "Too many devices."),
    Code("TooManyModulesOnDevice", 413, 413003, "A device takes at most 50 modules."),
    Code(
        "ConfigurationCountLimitExceeded",
        413,
        0,
        "Number of deployments exceed the maximum quota 100 for this IotHub.",
    ),
    Code("ThrottlingException", 429, 429001, "The request has been throttled."),
    Code("ThrottleBacklogLimitExceeded", 429, 429002, "The request has been throttled."),
    Code("ThrottlingBacklogTimeout", 429, 429003, "The request has been throttled."),
    Code("ServerError", 500, 500001, "The hub failed to handle the request."),
    Code("NotImplemented", 501, 501000, "The emulator does not have this operation."),
    Code("ServiceUnavailable", 503, 503001, "The service is not available."),
    Code("GatewayTimeout", 504, 504101, "The operation timed out."),
)
CODES = {row.name: row for row in _ROWS}
"""The catalogue by name."""


class HubError(Exception):
    """A request is answered with an error of the catalogue."""

    def __init__(self, name: str, text: str = "", *, message: str | None = None) -> None:
        """Pick a row by name; `message` replaces the whole `Message` field of the body."""
        self.code = CODES[name]
        self.text = text or self.code.text
        self.message = message
        super().__init__(f"{name}: {self.text}")


def body(error: HubError) -> bytes:
    """Return the JSON body that the service sends with an error."""
    message = error.message or f"ErrorCode:{error.code.name};{error.text}"
    return json.dumps(
        {"Message": message, "ExceptionMessage": f"Tracking ID:{_tracking_id()}"}
    ).encode()


def method_error(name: str, *, timeout_seconds: float, text: str = "") -> HubError:
    """Return the error of a direct method, whose `Message` is JSON text once more."""
    code = CODES[name]
    inner = {
        "errorCode": code.number,
        "trackingId": _tracking_id(),
        "message": text or code.text,
        "info": {"timeout": times.span(timeout_seconds)},
        "timestampUtc": times.stamp(),
    }
    return HubError(name, inner["message"], message=json.dumps(inner))


def _tracking_id() -> str:
    """Return an id in the service's spelling; it names nothing here."""
    return f"{secrets.token_hex(16).upper()}-G:0-TimeStamp:{times.american()}"
