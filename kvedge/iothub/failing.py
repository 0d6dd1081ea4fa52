"""The hub's failures as kvedge's errors, and how long to wait before the next try.

The hub tells its own code in the header `iothub-errorcode` or in the body's `Message`, and refuses
without `Retry-After`; the vendor's package keeps neither in its exception text.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from typing import Any

from kvedge import errors, redact

__all__ = [
    "Backoff",
    "error_from_response",
    "error_from_sign_in",
    "error_from_transport",
    "retryable",
]

_CODE = re.compile(r"ErrorCode:([A-Za-z0-9]+);?\s*(.*)", re.DOTALL)
_TRACKING = re.compile(r"Tracking ID:\s*([0-9A-Za-z-]+)", re.IGNORECASE)
_HINTS = {
    401: "the connection string's policy needs registry read, registry write and service connect",
    413: "a hub takes 100 deployments; remove some or let pods share one",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Pauses between tries of one request, with full jitter."""

    base_seconds: float = 10.0
    """First ceiling; the hub's own text says to wait 10 seconds."""
    cap_seconds: float = 60.0
    tries: int = 5
    """All tries of one request, the first included."""

    def pause(self, attempt: int) -> float:
        """Return the seconds to wait after the attempt, counted from 0."""
        ceiling = min(self.cap_seconds, self.base_seconds * 2**attempt)
        return random.uniform(0.1 * ceiling, ceiling)  # noqa: S311 - spreading load, no secret


def error_from_response(attempt: str, response: Any) -> errors.RemoteError:
    """Return the typed error of an HTTP answer (a requests.Response)."""
    status = int(response.status_code)
    code, text, tracking = _parse(response)
    details = redact.redacted(text)
    if tracking:
        details = f"{details} (tracking id {tracking})".strip()
    known: dict[str, Any] = {
        "status": status,
        "reason": code or str(response.reason or ""),
        "details": details,
        "hint": _HINTS.get(status, ""),
    }
    if status == 401:
        return errors.Unauthorized(attempt, **known)
    if status == 404:
        return errors.NotFound(attempt, **known)
    if status in (409, 412):
        return errors.Conflict(attempt, **known)
    if status == 429:
        return errors.Throttled(attempt, retry_after=_seconds(response), **known)
    return errors.RemoteError(attempt, **known)


def error_from_sign_in(attempt: str, cause: Exception) -> errors.Unauthorized:
    """Return the error of a request for which Microsoft Entra ID gave no token."""
    told = str(getattr(cause, "message", "") or cause).strip()
    return errors.Unauthorized(
        attempt,
        status=401,
        reason="SignInFailed",
        details=redact.redacted(told.splitlines()[0] if told else ""),
        hint="az login, or give the identity the role IoT Hub Data Contributor",
    )


def error_from_transport(attempt: str, cause: Exception) -> errors.RemoteError:
    """Return the error of a request that got no answer."""
    text = redact.redacted(str(cause))
    hint = "is the hub's name right and reachable?"
    if "CERTIFICATE_VERIFY_FAILED" in text or "SSLError" in text:
        hint = "give the authority that signed the hub's certificate as the CA file"
    return errors.RemoteError(attempt, reason="Unreachable", details=text, hint=hint)


def retryable(error: errors.RemoteError) -> bool:
    """Tell whether the same request may succeed later."""
    if isinstance(error, errors.Throttled):
        return True
    return error.status in (408, 500, 502, 503) or error.reason == "Unreachable"


def _seconds(response: Any) -> float | None:
    try:
        return float(response.headers.get("Retry-After", ""))
    except ValueError:
        return None


def _parse(response: Any) -> tuple[str, str, str]:
    """Return the hub's error code, its text and its tracking id; any may be empty."""
    code = response.headers.get("iothub-errorcode", "")
    try:
        body = json.loads(response.text)
    except ValueError:
        return code, response.text[:200], ""
    if not isinstance(body, dict):
        return code, str(body)[:200], ""
    text = str(body.get("Message") or body.get("message") or "")
    tracking = _TRACKING.search(str(body.get("ExceptionMessage", "")) + " " + text)
    if text.startswith("{"):
        # Direct methods answer with JSON inside the message.
        try:
            inner = json.loads(text)
            code = code or str(inner.get("errorCode", ""))
            text = str(inner.get("message", text))
            return code, text, str(inner.get("trackingId", ""))
        except ValueError:
            pass
    if found := _CODE.match(text):
        code, text = code or found[1], found[2]
    return code, text, tracking[1] if tracking else ""
