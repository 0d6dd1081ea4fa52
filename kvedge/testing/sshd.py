"""An ssh server for tests: paramiko's, which runs commands with sh and serves a folder by sftp.

It stands in for a guest's sshd where booting a VM is too slow: the same protocol, host key and
user keys on a real socket. Limits: public keys only, no terminals; commands run as this user, in
the folder. Files in the folder make it worse: `drop` hangs up on each command, `drop-login` on the
next login, and `login-seconds` has how long a login takes.
Run it as `python -m kvedge.testing.sshd FOLDER HOST:PORT`; the folder holds `host_key` and
`authorized_keys`, and is what sftp shows.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import paramiko
from paramiko import common

from kvedge import processes

__all__ = ["make_folder", "serve"]

_ANSWER_SECONDS = 0.2


def make_folder(folder: Path) -> tuple[str, Path]:
    """Make keys in a folder; return the public host key and the user's private key file."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, str] = {}
    for name in ("host_key", "user_key"):
        key = ed25519.Ed25519PrivateKey.generate()
        file = folder / name
        file.touch(mode=0o600)
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.NoEncryption(),
            )
        )
        lines[name] = (
            key.public_key()
            .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            .decode()
        )
    (folder / "authorized_keys").write_text(lines["user_key"] + "\n")
    return lines["host_key"], folder / "user_key"


class _Guest(paramiko.ServerInterface):
    def __init__(self, folder: Path, allowed: set[str], transport: paramiko.Transport) -> None:
        self._folder, self._allowed, self._transport = folder, allowed, transport

    def get_allowed_auths(self, username: str) -> str:
        del username
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        del username
        if (self._folder / "drop-login").exists():
            (self._folder / "drop-login").unlink()
            self._transport.close()
        if (self._folder / "login-seconds").exists():
            time.sleep(float((self._folder / "login-seconds").read_text()))
        known = f"{key.get_name()} {key.get_base64()}" in self._allowed
        return common.AUTH_SUCCESSFUL if known else common.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        del chanid
        session = kind == "session"
        return common.OPEN_SUCCEEDED if session else common.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        # The answer to the request, sent when this returns, must not come after the output's end.
        work = threading.Timer(_ANSWER_SECONDS, _run, (channel, command, self._folder))
        work.daemon = True
        work.start()
        return True


def _run(channel: paramiko.Channel, command: bytes, folder: Path) -> None:
    if (folder / "drop").exists():
        channel.get_transport().close()
        return
    done = processes.run(
        ["sh", "-c", command.decode()], what="run a command", cwd=folder, stdin=b"", check=False
    )
    channel.sendall(done.stdout.encode())
    channel.sendall_stderr(done.stderr.encode())
    channel.send_exit_status(done.returncode)
    channel.close()


class _Files(paramiko.SFTPServerInterface):
    """The folder's files: open, stat, list; what scp and sftp need."""

    root = Path()

    def _path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def canonicalize(self, path: str) -> str:
        return os.path.normpath(f"/{path}")

    def list_folder(self, path: str) -> Any:
        return [
            paramiko.SFTPAttributes.from_stat(one.stat(), one.name)
            for one in self._path(path).iterdir()
        ]

    def stat(self, path: str) -> Any:
        try:
            return paramiko.SFTPAttributes.from_stat(self._path(path).stat())
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)

    lstat = stat

    def open(self, path: str, flags: int, attr: paramiko.SFTPAttributes) -> Any:
        del attr
        try:
            descriptor = os.open(self._path(path), flags, 0o600)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)
        handle = paramiko.SFTPHandle(flags)
        mode = "r+b" if flags & os.O_RDWR else ("wb" if flags & os.O_WRONLY else "rb")
        handle.readfile = handle.writefile = os.fdopen(descriptor, mode)  # type: ignore[attr-defined]
        handle.stat = lambda: paramiko.SFTPAttributes.from_stat(os.fstat(descriptor))  # type: ignore[method-assign]
        handle.chattr = lambda _: paramiko.SFTP_OK  # type: ignore[method-assign]
        return handle


class _Sftp(paramiko.SFTPServer):
    """paramiko's, which tells no exit code by itself; scp wants one."""

    def start_subsystem(
        self, name: str, transport: paramiko.Transport, channel: paramiko.Channel
    ) -> None:
        super().start_subsystem(name, transport, channel)
        channel.send_exit_status(0)


def serve(folder: Path, listener: socket.socket) -> None:
    """Answer connections until the listener is closed."""
    key = paramiko.Ed25519Key.from_private_key_file(str(folder / "host_key"))
    allowed = {
        " ".join(line.split()[:2]) for line in (folder / "authorized_keys").read_text().splitlines()
    }
    files = type("Files", (_Files,), {"root": folder})
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        transport = paramiko.Transport(connection)
        transport.add_server_key(key)
        transport.set_subsystem_handler("sftp", _Sftp, files)
        try:
            guest = _Guest(folder, allowed, transport)
            transport.start_server(server=guest, event=threading.Event())
        except (paramiko.SSHException, EOFError):
            transport.close()


if __name__ == "__main__":
    host, _, port = sys.argv[2].rpartition(":")
    serve(Path(sys.argv[1]), socket.create_server((host, int(port)), backlog=100))
