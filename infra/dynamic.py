"""What our dynamic resources share: settings at `configure`, one loop, one hub, typed errors.

Provider classes are importable, so that pickling stores their name and not their code, and keep
nothing on `self` before `configure`: what is there then would be written to the stack's state.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from pulumi.dynamic import ConfigureRequest, ResourceProvider

from kvedge import errors, iothub, kube, settings
from kvedge.redact import Secret

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

    from kvedge import spec

__all__ = ["Provider", "plain", "plainly"]

Result = TypeVar("Result")
_KEYS = ("hub", "dps", "cluster", "registry")
_SHARING = threading.Lock()
"""functools.cache calls twice where two threads ask at once for the first time."""


class Provider(ResourceProvider):
    """A dynamic provider that finds cluster, hub and registry in settings and variables."""

    serialize_as_secret_always = False
    _stack: dict[str, Any]

    def configure(self, req: ConfigureRequest) -> None:
        """Keep the settings of the places that resources are made in."""
        self._stack = {}
        for key in _KEYS:
            found = req.config.get(key)
            if isinstance(found, str):
                found = json.loads(found)
            if found is not None:
                self._stack[key] = found

    def hub(self) -> contextlib.AbstractAsyncContextManager[iothub.Hub]:
        """Return the process's connection to the hub; it stays open after the context."""
        hub = settings.parse_hub(self._stack, environ=os.environ)
        with _SHARING:
            return contextlib.nullcontext(_hub(hub.connection_string.reveal(), hub.ca_file))

    def dps(self) -> spec.Dps | None:
        """Return the enrollment group that the devices register through, if there is one."""
        return settings.parse_dps(self._stack, environ=os.environ)

    def cluster(self) -> kube.Client:
        """Return a client of the cluster; use it as an async context."""
        cluster = settings.parse_cluster(self._stack, environ=os.environ)
        return kube.Client(kube.load_config(cluster.kubeconfig, cluster.context))

    def registry(self) -> spec.Registry:
        """Return where images are pushed."""
        return settings.parse_registry(self._stack, environ=os.environ)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run to the end; pulumi calls from threads without a loop. Errors as `plainly`."""
        with _SHARING:
            loop = _loop()
        with plainly():
            return asyncio.run_coroutine_threadsafe(work, loop).result()


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Raise a KvedgeError as one with message and hint in its text, which is all pulumi shows.

    Raises:
        RuntimeError: in place of the KvedgeError.
    """
    try:
        yield
    except errors.KvedgeError as cause:
        raise RuntimeError(plain(cause)) from cause


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """Return the loop that all calls of this process run on, in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="resources", daemon=True).start()
    return loop


@functools.cache
def _hub(connection_string: str, ca_file: Path | None) -> iothub.Hub:
    """Return a hub that all devices of a run share: connecting costs more than a request."""
    # A fleet is made once: the hub says itself when it is asked too often, and is waited for.
    budget = iothub.Budget(iothub.UNLIMITED)
    return iothub.Hub.from_connection_string(
        Secret(connection_string), ca_file=ca_file, budget=budget
    )


def plain(error: errors.KvedgeError) -> str:
    """Return message and hint in one text."""
    return error.message + (f" (hint: {error.hint})" if error.hint else "")
