"""ssh sessions by paramiko, with the host key pinned and nothing learnt at first use."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import logging
import os
import select
import shutil
import socket
import time
from typing import TYPE_CHECKING, Any

from kvedge import errors
from kvedge.access import terminals, tunnels
from kvedge.access.targets import tcp

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    import paramiko

    from kvedge import kube
    from kvedge.access.targets import Target

__all__ = ["Session", "connect", "fingerprint"]

_SSH = tcp(22)
_PAUSE = 0.5
_BUFFER = 32768
_GREETING_SECONDS = 15.0
_LOGIN_SECONDS = 60.0
"""At least so long for a guest that has greeted: a login costs an emulated machine seconds of a
processor that others want as well, and one that is broken off has to begin anew."""
# `connect` tells why it gave up; tracebacks of single tries go only where logging is set up.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


@contextlib.contextmanager
def _breaking() -> Generator[None, None, None]:
    """Tell a connection that ends in the middle as such."""
    import paramiko

    try:
        yield
    except (paramiko.SSHException, EOFError, ConnectionError) as cause:
        raise errors.KvedgeError(
            f"the ssh session broke: {cause or type(cause).__name__}",
            hint="did the VM restart? kvedge events; then run it again",
        ) from cause


class Session:
    """An authenticated ssh session."""

    def __init__(self, client: paramiko.SSHClient) -> None:
        self._client = client

    @_breaking()
    def run(
        self,
        command: str,
        *,
        stdin: BinaryIO | None = None,
        stdout: BinaryIO,
        stderr: BinaryIO,
        tty: bool = False,
    ) -> int:
        """Run a command, carry its streams, and return its exit code (255 if it had none)."""
        channel = self._open(tty=tty)
        channel.exec_command(command)
        return _carry(channel, stdin, stdout, stderr)

    @_breaking()
    def output(self, command: str, *, timeout: float = 60) -> tuple[int, str, str]:
        """Run a command and return its exit code, output and error output.

        Raises:
            TimeoutError: it was still running after so many seconds; it is hung up on.
        """
        out, err = io.BytesIO(), io.BytesIO()
        channel = self._open(tty=False)
        try:
            channel.exec_command(command)
            code = _carry(channel, None, out, err, seconds=timeout)
        finally:
            channel.close()
        return (
            code,
            out.getvalue().decode(errors="replace"),
            err.getvalue().decode(errors="replace"),
        )

    @_breaking()
    def shell(self) -> int:
        """Hand the terminal over to a login shell; returns its exit code."""
        channel = self._open(tty=True)
        channel.invoke_shell()
        return _interact(channel)

    @_breaking()
    def interactive(self, command: str) -> int:
        """Hand the terminal over to one command."""
        channel = self._open(tty=True)
        channel.exec_command(command)
        return _interact(channel)

    def start(self, command: str, *, size: tuple[int, int] | None = None) -> paramiko.Channel:
        """Start a command and return its channel; with columns and rows it gets a terminal."""
        channel = self._open(tty=False)
        if size:
            channel.get_pty("xterm", *size)
        channel.exec_command(command)
        return channel

    def _open(self, *, tty: bool) -> paramiko.Channel:
        transport = self._client.get_transport()
        if transport is None:
            raise errors.KvedgeError("the ssh session has ended")
        channel = transport.open_session()
        if tty:
            size = shutil.get_terminal_size()
            channel.get_pty(os.environ.get("TERM", "vt100"), size.columns, size.lines)
        return channel


@contextlib.contextmanager
def connect(
    config: kube.Config,
    target: Target,
    *,
    public_host_key: str,
    address: tuple[str, int] | None = None,
    identities: Sequence[Path] = (),
    deadline_seconds: float = 60,
) -> Generator[Session, None]:
    """Log in through the Kubernetes API, or straight at an address.

    A guest that is still booting is tried again until the deadline (seconds); one that has greeted
    is waited for. The host key is the same on every way.

    Args:
        address: host and port to dial instead of asking the Kubernetes API.
        public_host_key: what the guest must prove to hold, as one line of a .pub file.
        identities: private keys to offer; without any, the ssh agent's are.

    Raises:
        KvedgeError: wrong host key, refused login, or no sshd until the deadline.
    """
    import paramiko

    end = time.monotonic() + deadline_seconds
    keys = [str(path) for path in identities]
    while True:
        patience = max(_LOGIN_SECONDS, end - time.monotonic())
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(paramiko.SSHClient())
            try:
                if address:
                    sock = stack.enter_context(socket.create_connection(address, timeout=15))
                else:
                    sock = stack.enter_context(tunnels.local_socket(config, target, _SSH))
                _pin(client, target, public_host_key)
                client.connect(
                    target.alias,
                    username=target.user,
                    sock=sock,  # pyright: ignore[reportArgumentType]
                    key_filename=keys or None,  # pyright: ignore[reportArgumentType] - a list is documented
                    allow_agent=not identities,
                    look_for_keys=False,
                    banner_timeout=_GREETING_SECONDS,
                    auth_timeout=patience,
                    timeout=patience,
                    transport_factory=_patient(patience),
                )
            except paramiko.BadHostKeyException as cause:
                raise errors.KvedgeError(
                    f"host key of {target.alias!r} is {fingerprint(cause.key.get_base64())}, "
                    f"expected {fingerprint(cause.expected_key.get_base64())}",
                    hint="someone may be in between; if the key was rotated, run kvedge up",
                ) from cause
            except (paramiko.SSHException, EOFError, OSError, errors.RemoteError) as cause:
                if isinstance(cause, errors.RemoteError) and cause.status == 403:
                    raise
                if isinstance(cause, paramiko.AuthenticationException) and _refused(client, cause):
                    offered = ", ".join(str(path) for path in identities) or "the ssh agent"
                    raise errors.KvedgeError(
                        f"{target.alias!r} refused user {target.user!r} with keys of {offered}",
                        hint="name a key with -i, or add its public half to the VM's keys",
                    ) from cause
                if time.monotonic() > end:
                    raise errors.KvedgeError(
                        f"no ssh from {target.alias!r} within {deadline_seconds:g} s: {cause}",
                        hint=f"look at it: kvedge console {target.name}.{target.namespace}",
                    ) from cause
            else:
                yield Session(client)
                return
        time.sleep(_PAUSE)


def _patient(seconds: float) -> Callable[..., paramiko.Transport]:
    """Return what makes transports whose key exchange may take so long."""
    import paramiko

    def make(sock: socket.socket, **more: Any) -> paramiko.Transport:
        transport = paramiko.Transport(sock, **more)
        transport.handshake_timeout = seconds  # no argument of paramiko sets it
        return transport

    return make


def _refused(client: paramiko.SSHClient, cause: paramiko.AuthenticationException) -> bool:
    """Tell a guest's refusal from a login that broke off or took too long.

    To paramiko all three are one; after a refusal the connection is still there.
    """
    transport = client.get_transport()
    return transport is not None and transport.is_active() and "timeout" not in str(cause)


def _pin(client: paramiko.SSHClient, target: Target, public: str) -> None:
    import paramiko

    words = public.split()
    if len(words) < 2:
        raise errors.KvedgeError(f"host key of {target.alias!r} is not a public key: {public!r}")
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    key = paramiko.PKey.from_type_string(words[0], base64.b64decode(words[1]))
    client.get_host_keys().add(target.alias, words[0], key)


def fingerprint(base64_key: str) -> str:
    """Return a public key's fingerprint as OpenSSH shows it."""
    digest = hashlib.sha256(base64.b64decode(base64_key)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _carry(
    channel: paramiko.Channel,
    stdin: BinaryIO | None,
    stdout: BinaryIO,
    stderr: BinaryIO,
    *,
    seconds: float | None = None,
) -> int:
    """Carry a command's streams until it ends."""
    end = time.monotonic() + seconds if seconds is not None else None
    if stdin is None:
        channel.shutdown_write()
    while True:
        wait_for = [channel] + ([stdin] if stdin else [])
        ready, _, _ = select.select(wait_for, [], [], 1.0)
        if stdin in ready and stdin is not None:
            data = os.read(stdin.fileno(), _BUFFER)
            if data:
                channel.sendall(data)
            else:
                channel.shutdown_write()
                stdin = None
        ended = channel.closed or channel.eof_received
        while channel.recv_ready():
            stdout.write(channel.recv(_BUFFER))
        while channel.recv_stderr_ready():
            stderr.write(channel.recv_stderr(_BUFFER))
        stdout.flush()
        stderr.flush()
        # What was sent before the end is in the buffers once the end is seen.
        if ended and not (channel.recv_ready() or channel.recv_stderr_ready()):
            break
        if end is not None and time.monotonic() > end:
            raise TimeoutError(f"the command had no end within {seconds:g} s")
    code = channel.recv_exit_status()
    return 255 if code < 0 else code


def _interact(channel: paramiko.Channel) -> int:
    """Join the terminal to a channel and return its exit code."""
    terminals.join(channel, resize=channel.resize_pty)
    code = channel.recv_exit_status()
    return 255 if code < 0 else code
