"""What the emulator does of IoT Hub: the table behind docs/reference/emulator.md.

Tests walk it: each operation has a row, each row's tests exist, what is refused answers 501.
Write the page anew with `python -m kvedge.emulator.coverage > docs/reference/emulator.md`.
"""

from __future__ import annotations

import dataclasses
import enum

from kvedge.emulator.rest import routes

__all__ = ["ROWS", "Row", "State", "endpoints", "page"]


class State(enum.StrEnum):
    """How a row compares with the service."""

    DONE = "done"
    DIFFERS = "differs"
    REFUSED = "refused"
    OWN = "own"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One endpoint or behaviour."""

    area: str
    what: str
    state: State
    note: str = ""
    operations: tuple[str, ...] = ()
    """Names of handlers in `rest.routes.ROUTES`."""
    refused: str = ""
    """For a refused row: its name in `rest.routes.REFUSED`."""
    tests: tuple[str, ...] = ()
    """Files below `tests` that show it."""


def _rows(area: str, *rows: tuple[object, ...]) -> tuple[Row, ...]:
    return tuple(
        Row(
            area=area,
            what=str(what),
            state=State(str(state)),
            note=str(note),
            operations=tuple(str(operations).split()),
            tests=tuple(str(tests).split()),
        )
        for what, state, note, operations, tests in rows
    )


_IDENTITIES = "contract/hub/test_identities.py"
_TWINS = "contract/hub/test_twins.py"
_DEPLOYMENTS = "contract/hub/test_deployments.py"
_DEVICES = "contract/hub/test_devices.py"
_ACCESS = "integration/emulator/test_access.py"
_MQTT = "integration/emulator/test_mqtt.py"
_JOBS = "contract/hub/test_jobs.py"
_KNOBS = "contract/hub/test_knobs.py"
_PROVISIONING = "contract/hub/test_provisioning.py"
_CERTIFICATES = "contract/hub/test_certificates.py"
_CONFIGURATIONS = "contract/hub/test_device_configurations.py"
_FAULTS = "integration/emulator/test_faults.py"
_DURABILITY = "integration/emulator/test_durability.py"
_TPM = "integration/emulator/test_tpm.py"
_STATE = "integration/emulator/test_state.py"

ROWS: tuple[Row, ...] = (
    *_rows(
        "Access",
        ("Shared access signatures of policies and devices", "done",
         "audience, expiry, constant-time comparison; policies iothubowner, service, device, "
         "registryRead, registryReadWrite", "", _ACCESS),
        ("Rights of each policy", "done", "", "", _ACCESS),
        ("A device's token on its own modules", "done",
         "as the edge runtime's identity service uses it", "", _ACCESS),
        ("Error bodies, codes and `iothub-errorcode`", "done",
         "tracking ids are random and name nothing", "", _ACCESS),
        ("`api-version`", "differs", "any date is taken; the answers are those of 2021-04-12", "",
         _ACCESS),
        ("Microsoft Entra ID tokens", "differs", "no tenant vouches for them: answered 401", "",
         _ACCESS),
    ),
    *_rows(
        "Identities",
        ("Devices: make, read, change, remove, list", "done", "etag and If-Match rules as live",
         "get_device put_device delete_device list_devices", _IDENTITIES),
        ("Modules of a device", "done", "at most 50; `$` names are the hub's",
         "get_module put_module delete_module list_modules", _IDENTITIES),
        ("Bulk operations", "done", "all import modes, 100 a request", "bulk", _IDENTITIES),
        ("Edge capability, `$edgeAgent`, `$edgeHub`, scopes and parents", "done", "", "",
         _IDENTITIES),
        ("Statistics", "done", "", "registry_statistics service_statistics", _IDENTITIES),
        ("X.509 thumbprints", "done",
         "on MQTT, WebSocket and HTTPS; an unknown or expired certificate ends the TLS handshake",
         "", _CERTIFICATES),
        ("X.509 below a CA", "differs",
         "the CA is made known by `PUT /kvedge/v1/authorities/{name}`, not in Azure's management; "
         "the leaf's common name is the device id (or `device/module`)",
         "list_authorities put_authority delete_authority", _CERTIFICATES),
        ("Quota of 1,000,000 identities", "differs", "not counted", "", ""),
    ),
    *_rows(
        "Twins",
        ("Read, merge, replace, of devices and modules", "done",
         "`$version`, `$metadata`, null, etags", "get_twin patch_twin replace_twin", _TWINS),
        ("Limits of size, value, name, depth and integers", "done", "",
         "", f"{_TWINS} unit/emulator/test_patching.py"),
        ("Query language", "done",
         "devices, devices.modules, devices.jobs; aggregates, GROUP BY, TOP, paging", "query",
         f"{_TWINS} unit/emulator/test_query.py"),
        ("Comparison with null in queries", "differs",
         "`!= null` holds for any other value; the service does not document it", "",
         "unit/emulator/test_query.py"),
        ("Names of columns without AS", "differs",
         "the last part of the path, `$1` for expressions", "", "unit/emulator/test_query.py"),
        ("Digital twins and commands", "differs",
         "no models are resolved, so nothing is checked against them",
         "get_digital_twin patch_digital_twin invoke_command", _JOBS),
    ),
    *_rows(
        "Deployments",
        ("Configurations: make, read, change, remove, list", "done",
         "immutable content, quoted If-Match, 409, 413 above the limit",
         "list_configurations get_configuration put_configuration delete_configuration",
         _DEPLOYMENTS),
        ("Base and layers, priorities, ties, Targeted and Applied", "done",
         "layers count only above their base's priority", "",
         f"{_DEPLOYMENTS} unit/emulator/test_deploying.py"),
        ("System and custom metrics", "done", "at evaluation only", "", _DEPLOYMENTS),
        ("Time of evaluation", "differs",
         "0.2 s after a change unless told; `--evaluation-seconds 300` is the service's", "",
         _DEPLOYMENTS),
        ("Test of target condition and metrics", "done", "does not know `*`, like the service",
         "test_queries", _DEPLOYMENTS),
        ("Content for one device", "done", "", "apply_content", _DEPLOYMENTS),
        ("Removal of a deployed module's identity", "differs",
         "left to the edge agent, as its identity service does it", "", ""),
        ("Device and module configurations (`deviceContent`, `moduleContent`)", "done",
         "the highest priority wins each setting; a module configuration never hits `$edgeAgent` "
         "or `$edgeHub`", "", _CONFIGURATIONS),
    ),
    *_rows(
        "Methods and messages",
        ("Direct methods", "done", "offline 404103, timeouts 504101, connect timeout",
         "invoke_method", _DEVICES),
        ("Telemetry", "differs",
         "the newest 10,000 messages; read by `kvedge hub monitor-events` instead of Event Hubs",
         "read_events", _MQTT),
        ("Cloud-to-device messages", "differs",
         "sent by a route of the emulator, since the vendor's client sends them over AMQP; "
         "50 wait, 64 KB each", "send_command purge_commands", _MQTT),
        ("Message routing and enrichments", "differs",
         "set in Azure's management, of which nothing is here", "", ""),
    ),
    *_rows(
        "MQTT",
        ("MQTT 3.1.1 over TLS 1.2 and 1.3", "done", "QoS 0 and 1; QoS 2 ends the connection", "",
         _MQTT),
        ("MQTT over WebSocket", "done", "", "", _DEVICES),
        ("Twin, methods, telemetry, wills, retained messages", "done", "", "",
         f"{_DEVICES} {_MQTT}"),
        ("Takeover, keep-alive, token expiry, kept subscriptions", "done", "", "",
         f"{_DEVICES} {_MQTT}"),
        ("Relay of modules' telemetry by `$edgeHub`", "differs",
         "published to the module's own topic; the real edge hub uses AMQP", "", _MQTT),
        ("AMQP", "differs", "no port speaks it", "", ""),
    ),
    *_rows(
        "Jobs and provisioning",
        ("Scheduled jobs (jobs v2)", "done", "", "put_job get_job cancel_job query_jobs", _JOBS),
        ("Provisioning with symmetric keys, by MQTT and HTTPS", "done", "",
         "register registration_status", _PROVISIONING),
        ("Provisioning with X.509, by MQTT and HTTPS", "done",
         "individual by the device's certificate, groups by their CA", "", _CERTIFICATES),
        ("Provisioning with a TPM, by HTTPS", "done",
         "individual; the key is sealed to the TPM, which signs with it; RSA keys", "", _TPM),
        ("Enrollments and groups", "differs",
         "under the hub's own name and keys; no allocation policies, no queries",
         "put_enrollment get_enrollment delete_enrollment put_group get_group delete_group",
         _PROVISIONING),
    ),
    *(
        Row(area="Refused", what=what[:1].upper() + what[1:], state=State.REFUSED, refused=what,
            tests=(_STATE,))
        for what in routes.REFUSED
    ),
    *_rows(
        "Only here",
        ("Throttles, latency, failures, query lag, dropped connections", "own",
         "flags of `kvedge hub emulate` and `kvedge hub knobs`, tiers F1 to S3; a "
         "throttle refuses at once where the service delays first; all off at first",
         "get_knobs put_knobs", _KNOBS),
        ("The provisioning scope", "own", "`GET /kvedge/v1/hub`", "describe", _PROVISIONING),
        ("Whole state as JSON", "own", "all but the policies' keys and received telemetry",
         "export_state import_state", _STATE),
        ("`x-kvedge-emulator: 1` on every answer", "own",
         "so that the stand-in edge runtime refuses a real hub", "", _ACCESS),
        ("Slow, half-open and malformed clients", "own",
         "15 s for a TLS handshake, CONNECT or a body, 75 s for an idle HTTPS connection", "",
         _FAULTS),
        ("Acknowledged writes survive kill -9", "own", "SQLite with a write-ahead log", "",
         _DURABILITY),
    ),
)  # fmt: skip
"""All rows, in the order of the page's sections."""


def endpoints(row: Row) -> list[str]:
    """Return method and path of each operation that a row is about."""
    if row.refused:
        return [*routes.REFUSED[row.refused]]
    return [f"{item.method} {item.path}" for item in routes.ROUTES if item.name in row.operations]


def page() -> str:
    """Return the page as Markdown."""
    lines = [
        "# What the hub emulator does",
        "",
        "The emulator answers the vendor's own clients, azure-iot-hub 2.7.0 and azure-iot-device "
        "2.14.0, unchanged.",
        "This page is written by `python -m kvedge.emulator.coverage`; a test compares both.",
        "*Done* is as the service does it, *differs* says how, *refused* is answered 501 with its "
        "name, *own* exists only here.",
    ]
    for area in dict.fromkeys(row.area for row in ROWS):
        rows = [row for row in ROWS if row.area == area]
        lines += ["", f"## {area}", "", "| what | state | note |", "|---|---|---|"]
        lines += [f"| {row.what} | {row.state} | {row.note} |" for row in rows]
        if called := [(line, row) for row in rows for line in endpoints(row)]:
            lines += ["", "| operation | state |", "|---|---|"]
            lines += [f"| `{line}` | {row.state} |" for line, row in called]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201 - this is how the page is written
