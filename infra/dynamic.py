"""What our dynamic resources share: settings at `configure`, one loop run a call, typed errors.

Provider classes are importable, so that pickling stores their name and not their code, and keep
nothing on `self` before `configure`: what is there then would be written to the stack's state.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, TypeVar

from pulumi.dynamic import ConfigureRequest, ResourceProvider

from kvedge import errors, iothub, kube, settings

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from kvedge import spec

__all__ = ["Provider", "plain", "plainly"]

Result = TypeVar("Result")
_KEYS = ("hub", "dps", "cluster", "registry")


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

    def hub(self) -> iothub.Hub:
        """Return a connection to the hub; use it as an async context."""
        hub = settings.parse_hub(self._stack, environ=os.environ)
        return iothub.Hub.from_connection_string(hub.connection_string, ca_file=hub.ca_file)

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
        with plainly():
            return asyncio.run(work)


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


def plain(error: errors.KvedgeError) -> str:
    """Return message and hint in one text."""
    return error.message + (f" (hint: {error.hint})" if error.hint else "")
