"""The table of all HTTPS routes: name, who may use it, which throttle counts it."""

from __future__ import annotations

import dataclasses

from kvedge.emulator.access import Right

__all__ = ["REFUSED", "ROUTES", "Route"]

_READ = Right.REGISTRY_READ
_WRITE = Right.REGISTRY_WRITE
_SERVICE = Right.SERVICE_CONNECT


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One operation."""

    name: str
    """Name of the handler."""
    method: str
    path: str
    right: Right
    operation: str
    """The throttle that counts it, in the words of the service's own message."""
    own: bool = False
    """A device may call it for itself, as the edge runtime's identity service does."""
    versioned: bool = True
    """It needs `api-version`."""


def _route(name: str, line: str, right: Right, operation: str, *, own: bool = False) -> Route:
    method, path = line.split()
    return Route(
        name=name,
        method=method,
        path=path,
        right=right,
        operation=operation,
        own=own,
        versioned=not path.startswith("/kvedge/"),
    )


_ALL = _READ | _WRITE | _SERVICE
_NOBODY = Right(0)
"""The handler checks the token by itself."""
_REGISTRATION = "/{scope}/registrations/{registration}"
_DIGITAL = "/digitaltwins/{device}"
_DEVICE = "/devices/{device}"
_MODULE = "/devices/{device}/modules/{module}"
_TWIN = "/twins/{device}"
_MODULE_TWIN = "/twins/{device}/modules/{module}"

ROUTES = (
    _route("list_devices", "GET /devices", _READ, "IdentityRead"),
    _route("bulk", "POST /devices", _WRITE, "IdentityWrite"),
    _route("query", "POST /devices/query", _SERVICE, "Query"),
    _route("get_device", f"GET {_DEVICE}", _READ, "IdentityRead"),
    _route("put_device", f"PUT {_DEVICE}", _WRITE, "IdentityWrite"),
    _route("delete_device", f"DELETE {_DEVICE}", _WRITE, "IdentityWrite"),
    _route("list_modules", f"GET {_DEVICE}/modules", _READ, "IdentityRead", own=True),
    _route("get_module", f"GET {_MODULE}", _READ, "IdentityRead", own=True),
    _route("put_module", f"PUT {_MODULE}", _WRITE, "IdentityWrite", own=True),
    _route("delete_module", f"DELETE {_MODULE}", _WRITE, "IdentityWrite", own=True),
    _route("apply_content", f"POST {_DEVICE}/applyConfigurationContent", _WRITE, "IdentityWrite"),
    _route("purge_commands", f"DELETE {_DEVICE}/commands", _SERVICE, "C2DSend"),
    _route("get_twin", f"GET {_TWIN}", _SERVICE, "TwinRead"),
    _route("patch_twin", f"PATCH {_TWIN}", _SERVICE, "TwinUpdate"),
    _route("replace_twin", f"PUT {_TWIN}", _SERVICE, "TwinUpdate"),
    _route("get_twin", f"GET {_MODULE_TWIN}", _SERVICE, "TwinRead"),
    _route("patch_twin", f"PATCH {_MODULE_TWIN}", _SERVICE, "TwinUpdate"),
    _route("replace_twin", f"PUT {_MODULE_TWIN}", _SERVICE, "TwinUpdate"),
    _route("invoke_method", f"POST {_TWIN}/methods", _SERVICE, "DirectMethod"),
    _route("invoke_method", f"POST {_MODULE_TWIN}/methods", _SERVICE, "DirectMethod"),
    _route("registry_statistics", "GET /statistics/devices", _READ, "IdentityRead"),
    _route("service_statistics", "GET /statistics/service", _SERVICE, "IdentityRead"),
    _route("list_configurations", "GET /configurations", _READ, "ConfigurationRead"),
    _route("test_queries", "POST /configurations/testQueries", _READ, "ConfigurationRead"),
    _route("get_configuration", "GET /configurations/{name}", _READ, "ConfigurationRead"),
    _route("put_configuration", "PUT /configurations/{name}", _WRITE, "ConfigurationWrite"),
    _route("delete_configuration", "DELETE /configurations/{name}", _WRITE, "ConfigurationWrite"),
    _route("read_events", "GET /kvedge/v1/events", _SERVICE, "Emulator"),
    _route("query_jobs", "GET /jobs/v2/query", _SERVICE, "Jobs"),
    _route("put_job", "PUT /jobs/v2/{name}", _SERVICE, "Jobs"),
    _route("get_job", "GET /jobs/v2/{name}", _SERVICE, "Jobs"),
    _route("cancel_job", "POST /jobs/v2/{name}/cancel", _SERVICE, "Jobs"),
    _route("get_digital_twin", f"GET {_DIGITAL}", _SERVICE, "TwinRead"),
    _route("patch_digital_twin", f"PATCH {_DIGITAL}", _SERVICE, "TwinUpdate"),
    _route("invoke_command", f"POST {_DIGITAL}/commands/{{command}}", _SERVICE, "DirectMethod"),
    _route(
        "invoke_command",
        f"POST {_DIGITAL}/components/{{component}}/commands/{{command}}",
        _SERVICE,
        "DirectMethod",
    ),
    _route("put_enrollment", "PUT /enrollments/{name}", _WRITE, "Enrollment"),
    _route("get_enrollment", "GET /enrollments/{name}", _READ, "Enrollment"),
    _route("delete_enrollment", "DELETE /enrollments/{name}", _WRITE, "Enrollment"),
    _route("put_group", "PUT /enrollmentGroups/{name}", _WRITE, "Enrollment"),
    _route("get_group", "GET /enrollmentGroups/{name}", _READ, "Enrollment"),
    _route("delete_group", "DELETE /enrollmentGroups/{name}", _WRITE, "Enrollment"),
    _route("register", f"PUT {_REGISTRATION}/register", _NOBODY, "Registration"),
    _route(
        "registration_status",
        f"GET {_REGISTRATION}/operations/{{operation}}",
        _NOBODY,
        "Registration",
    ),
    _route("list_authorities", "GET /kvedge/v1/authorities", _SERVICE, "Emulator"),
    _route("put_authority", "PUT /kvedge/v1/authorities/{name}", _ALL, "Emulator"),
    _route("delete_authority", "DELETE /kvedge/v1/authorities/{name}", _ALL, "Emulator"),
    _route("describe", "GET /kvedge/v1/hub", _SERVICE, "Emulator"),
    _route("export_state", "GET /kvedge/v1/state", _ALL, "Emulator"),
    _route("import_state", "PUT /kvedge/v1/state", _ALL, "Emulator"),
    _route("get_knobs", "GET /kvedge/v1/knobs", _SERVICE, "Emulator"),
    _route("put_knobs", "PUT /kvedge/v1/knobs", _SERVICE, "Emulator"),
    _route("send_command", "POST /kvedge/v1/devices/{device}/messages", _SERVICE, "Emulator"),
)

_FEEDBACK = "/messages/serviceBound/feedback"
_UPLOADS = "/messages/serviceBound/filenotifications"
_BOUND = f"{_DEVICE}/messages/deviceBound"

REFUSED = {
    "import and export jobs (they need blob storage)": (
        "POST /jobs/create", "GET /jobs", "GET /jobs/{name}", "DELETE /jobs/{name}",
    ),
    "feedback of cloud-to-device messages": (
        f"GET {_FEEDBACK}", f"DELETE {_FEEDBACK}/{{lock}}", f"POST {_FEEDBACK}/{{lock}}/abandon",
    ),
    "file uploads (they need blob storage)": (
        f"POST {_DEVICE}/files", f"POST {_DEVICE}/files/notifications",
        f"GET {_UPLOADS}", f"DELETE {_UPLOADS}/{{lock}}", f"POST {_UPLOADS}/{{lock}}/abandon",
    ),
    "messages over HTTPS (devices speak MQTT)": (
        f"POST {_DEVICE}/messages/events", f"POST {_MODULE}/messages/events",
        f"GET {_BOUND}", f"DELETE {_BOUND}/{{lock}}", f"POST {_BOUND}/{{lock}}/abandon",
    ),
    "bulk, queries and key read-out of enrollments": (
        "POST /enrollments", "POST /enrollments/query",
        "POST /enrollments/{name}/attestationmechanism", "POST /enrollmentGroups/query",
        "POST /enrollmentGroups/{name}/attestationmechanism",
    ),
    "records of registrations": (
        "GET /registrations/{name}", "DELETE /registrations/{name}",
        "POST /registrations/{name}/query",
    ),
}  # fmt: skip
"""What of the service is answered 501, and by that name: method and path of each operation."""
