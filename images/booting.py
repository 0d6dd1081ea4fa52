"""Booting a built disk under QEMU, with all that a VM of ours gets, and logging in strictly.

For `kvedge image test`, tests and the benchmark; VMs of a site are run by `kvedge.site.host`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shlex
import shutil
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudinit.seeding
from kvedge import errors, processes

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Mapping

    import paramiko

__all__ = ["Guest", "Keys", "boot", "make_keys"]

_GLANCE_SECONDS = 0.2
_PATIENCE_SECONDS = 4.0
_OVMF = ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """A guest's host key and a client's key, OpenSSH texts."""

    host_private: str
    host_public: str
    client_private: str
    client_public: str


def make_keys() -> Keys:
    """Return two fresh ed25519 pairs."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    texts = []
    for _ in range(2):
        key = ed25519.Ed25519PrivateKey.generate()
        texts += [
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.NoEncryption(),
            ).decode(),
            key.public_key()
            .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            .decode()
            + "\n",
        ]
    return Keys(
        host_private=texts[0],
        host_public=texts[1],
        client_private=texts[2],
        client_public=texts[3],
    )


_MEMORY_STAYS = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


@dataclasses.dataclass(slots=True, kw_only=True)
class Guest:
    """A running guest."""

    process: subprocess.Popen[bytes]
    port: int
    """Loopback port of its sshd."""
    keys: Keys
    folder: Path
    started: float
    """Clock (`time.monotonic`) when QEMU was started."""
    argv: tuple[str, ...]

    def login(self, *, deadline: float = 180.0) -> paramiko.SSHClient:
        """Log in as `edge`, accepting only the host key that was given to the guest.

        Raises:
            KvedgeError: no login within `deadline` seconds, or the guest ended.
        """
        import paramiko

        client_key = paramiko.Ed25519Key.from_private_key(io.StringIO(self.keys.client_private))
        kind, text = self.keys.host_public.split()[:2]
        end = time.monotonic() + deadline
        last = "its network did not come up"
        patience = _GLANCE_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise errors.KvedgeError(
                    f"guest ended with code {self.process.returncode} before a login",
                    hint=f"serial console: {self.folder / 'serial.log'}",
                )
            if not self._has_network():
                time.sleep(0.1)
                continue
            sock = self._greeted(patience, end)
            if sock is None:
                last = "sshd did not answer"
                patience = min(2 * patience, _PATIENCE_SECONDS)
                time.sleep(0.05)
                continue
            client = paramiko.SSHClient()
            client.get_host_keys().add(f"[127.0.0.1]:{self.port}", kind, _public_key(kind, text))
            client.set_missing_host_key_policy(paramiko.RejectPolicy())
            try:
                client.connect(
                    "127.0.0.1", self.port, "edge", pkey=client_key, sock=sock, timeout=60,
                    banner_timeout=60, auth_timeout=60, allow_agent=False, look_for_keys=False,
                )  # fmt: skip
            except paramiko.BadHostKeyException:
                client.close()
                raise
            except (paramiko.SSHException, EOFError, OSError) as error:
                # sshd may restart, or refuse accounts, while the boot goes on.
                last = repr(error)
                client.close()
                time.sleep(0.1)
                continue
            return client
        raise errors.KvedgeError(
            f"no login within {deadline:.0f} s: {last}",
            hint=f"serial console: {self.folder / 'serial.log'}",
        )

    def _has_network(self) -> bool:
        """Whether the guest's network card listens, which is when addresses are asked for.

        QEMU accepts connections from the first second on and keeps each for the guest, also when it
        was given up; all of them would come at once when the network is up, a process of sshd each.
        """
        with contextlib.suppress(OSError, errors.KvedgeError):
            return any(card["multicast-table"] for card in self._ask("query-rx-filter"))
        return False

    def _greeted(self, patience: float, end: float) -> socket.socket | None:
        """Return a connection on which sshd has said its first words, which are still to be read.

        What the guest's network has answered is waited for until the clock says `end`; without an
        answer within `patience` seconds the try is given up.
        """
        sock = None
        with contextlib.suppress(OSError):
            sock = socket.create_connection(("127.0.0.1", self.port), timeout=1)
            sock.settimeout(patience)
            while time.monotonic() < end:
                try:
                    if sock.recv(4, socket.MSG_PEEK) == b"SSH-":
                        return sock
                    break
                except TimeoutError:
                    if "[ESTABLISHED]" not in self._monitor("info usernet"):
                        break
        if sock:
            sock.close()
        return None

    def run(
        self, client: paramiko.SSHClient, command: str, *, timeout: float = 120.0
    ) -> tuple[int, str]:
        """Run a command in the guest and return its exit code and output."""
        _, out, err = client.exec_command(command, timeout=timeout)
        text = out.read().decode(errors="replace") + err.read().decode(errors="replace")
        return out.channel.recv_exit_status(), text

    def save(self, *, deadline: float = 60.0) -> None:
        """Keep the guest's whole state in its folder and end it; `boot(load=True)` goes on with it.

        Its memory already is a file there (`boot(keep=True)`), which only has to be left alone:
        what is written is the state of its devices.

        Raises:
            KvedgeError: QEMU refused, or is not done after `deadline` seconds.
        """
        self._ask("migrate-set-capabilities", _MEMORY_STAYS)
        self._ask("migrate", {"uri": f"exec:cat > {shlex.quote(str(self.folder / 'state'))}"})
        end = time.monotonic() + deadline
        while (done := self._ask("query-migrate")).get("status") != "completed":
            if done.get("status") == "failed" or time.monotonic() > end:
                raise errors.KvedgeError(
                    f"cannot save the guest: {done.get('error-desc') or 'not done in time'}",
                    hint=f"QEMU's words: {self.folder / 'qemu.log'}",
                )
            time.sleep(0.02)
        self.stop()

    def resume(self) -> None:
        """Go on with what `save` kept, in a guest that waits for it; `boot` calls this."""
        self._ask("migrate-set-capabilities", _MEMORY_STAYS)
        state = shlex.quote(str(self.folder / "state"))
        self._ask("migrate-incoming", {"uri": f"exec:cat {state}"})

    def _monitor(self, command: str) -> str:
        """Return the answer of QEMU's human monitor."""
        return self._ask("human-monitor-command", {"command-line": command})

    def _ask(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Return what QEMU's machine protocol answers to a command."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(300)
            while True:
                with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                    sock.connect(str(self.folder / "qmp.sock"))
                    break
                if self.process.poll() is not None:
                    raise ConnectionError("QEMU has ended")
                time.sleep(0.005)
            stream = sock.makefile("rwb")
            stream.readline()
            answer: dict[str, Any] = {}
            for asked in (
                {"execute": "qmp_capabilities"},
                {"execute": command, "arguments": dict(arguments or {})},
            ):
                stream.write(json.dumps(asked).encode() + b"\n")
                stream.flush()
                answer = json.loads(stream.readline())
                while "event" in answer:
                    answer = json.loads(stream.readline())
                if "error" in answer:
                    refusal = answer["error"]["desc"]
                    raise errors.KvedgeError(f"QEMU refused {asked['execute']!r}: {refusal}")
        return answer["return"]

    def stop(self) -> None:
        """End the guest at once."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def boot(
    disk: Path,
    folder: Path,
    *,
    secrets: Mapping[str, bytes] | None = None,
    user_data: str = "#cloud-config\n{}\n",
    data_disk: Path | None = None,
    keys: Keys | None = None,
    firmware: str = "bios",
    memory_mib: int = 1024,
    instance_id: str = "i-1",
    keep: bool = False,
    load: bool = False,
    again: bool = False,
) -> Iterator[Guest]:
    """Run a guest on a throw-away overlay of a qcow2 disk until the block ends.

    Args:
        disk: the built disk; it is not written to.
        folder: where overlay, seeds and the serial console's log go.
        secrets: files of the secret disk beside keys.
        user_data: cloud-init user data.
        data_disk: raw or qcow2 disk with serial `edge-data`.
        keys: host and client keys; made if not given.
        firmware: `bios` or `uefi`.
        keep: have the guest's memory in the folder, so that it can be saved (`Guest.save`).
        load: go on with the guest that was saved in the folder, as often as wanted: what is changed
            in memory and on disks is thrown away. Everything else must be as it was then.
        again: start the folder's overlay once more instead of a fresh one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keys = keys or make_keys()
    overlay = folder / "overlay.qcow2"
    if not load and not again:
        processes.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", disk.resolve(),
             overlay, "6G"], what="make the guest's disk",
        )  # fmt: skip
    files = {
        "ssh_host_ed25519_key": keys.host_private.encode(),
        "ssh_host_ed25519_key.pub": keys.host_public.encode(),
        "authorized_keys": keys.client_public.encode(),
        **(secrets or {}),
    }
    (folder / "secret.iso").write_bytes(cloudinit.seeding.iso("EDGECONFIG", files))
    meta = f'{{"instance-id": "{instance_id}", "local-hostname": "edge-1"}}'
    (folder / "seed.iso").write_bytes(cloudinit.seeding.seed(user_data=user_data, meta_data=meta))
    port = _free_port()
    drives = [(overlay, "qcow2", ""), (folder / "seed.iso", "raw", ",readonly=on"),
              (folder / "secret.iso", "raw", ",readonly=on")]  # fmt: skip
    serials = ["", "", ",serial=edge-config"]
    if data_disk:
        with data_disk.open("rb") as file:
            form = "qcow2" if file.read(4) == b"QFI\xfb" else "raw"
        drives.append((data_disk, form, ""))
        serials.append(",serial=edge-data")
    machine = "q35,usb=off,vmport=off"
    if keep or load:
        machine += ",memory-backend=memory"
    argv = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-machine", machine,
            "-accel", "tcg,thread=multi", "-cpu", "max,-erms", "-smp", "2", "-m", str(memory_mib),
            "-nodefaults", "-no-reboot", "-display", "none",
            "-serial", f"file:{folder / 'serial.log'}", "-qmp",
            f"unix:{folder / 'qmp.sock'},server=on,wait=off",
            "-netdev", f"user,id=n0,hostfwd=tcp:127.0.0.1:{port}-:22",
            "-device", "virtio-net-pci,netdev=n0,mac=02:00:00:00:00:01,romfile=",
            "-device", "virtio-rng-pci"]  # fmt: skip
    if load:
        drives = [(path, form, extra or ",snapshot=on") for path, form, extra in drives]
    for number, ((path, form, extra), serial) in enumerate(zip(drives, serials, strict=True)):
        argv += ["-drive", f"if=none,id=d{number},file={path},format={form}{extra}",
                 "-device", f"virtio-blk-pci,drive=d{number}{serial}"]  # fmt: skip
    if firmware == "uefi":
        code, variables = (Path(name) for name in _OVMF)
        if not code.exists():
            raise errors.ToolMissing("ovmf", "UEFI firmware not found", hint="apt-get install ovmf")
        shutil.copyfile(variables, folder / "vars.fd")
        argv += ["-drive", f"if=pflash,format=raw,readonly=on,file={code}",
                 "-drive", f"if=pflash,format=raw,file={folder / 'vars.fd'}"]  # fmt: skip
    if keep or load:
        # A loaded guest maps the file for itself: pages are read when it touches them.
        argv += ["-object", f"memory-backend-file,id=memory,size={memory_mib}M,"
                 f"mem-path={folder / 'memory'},share={'off' if load else 'on'}"]  # fmt: skip
    if load:
        argv += ["-incoming", "defer"]
    started = time.monotonic()
    guest = Guest(
        process=processes.popen(argv, log=folder / "qemu.log"),
        port=port,
        keys=keys,
        folder=folder,
        started=started,
        argv=tuple(argv),
    )
    try:
        if load:
            guest.resume()
        yield guest
    finally:
        guest.stop()


def _public_key(kind: str, text: str) -> paramiko.PKey:
    import base64

    import paramiko

    return paramiko.PKey.from_type_string(kind, base64.b64decode(text))


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
