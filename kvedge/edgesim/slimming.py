"""Spares the runtime the device client's HTTP half, which is most of its time to import.

The client needs `requests` for calling other modules' methods and for file upload. The runtime does
neither, and in an emulated VM the import takes seconds. Modules get the whole client.
"""

from __future__ import annotations

import sys
import types

__all__ = ["leave_out_requests"]


def leave_out_requests() -> None:
    """Put empty modules where the device client looks for `requests`; call before importing it."""
    if "requests" in sys.modules:
        return
    requests = types.ModuleType("requests")
    # A client makes one adapter when it is built and uses it only for HTTP calls.
    requests.adapters = types.SimpleNamespace(HTTPAdapter=object)  # type: ignore[attr-defined]
    unix_sockets = types.ModuleType("requests_unixsocket")
    unix_sockets.monkeypatch = lambda: None  # type: ignore[attr-defined]
    sys.modules["requests"] = requests
    sys.modules["requests_unixsocket"] = unix_sockets
