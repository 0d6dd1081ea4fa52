"""Trying a guest whose sshd is not there yet."""

import socket
import subprocess
import sys
import threading

import pytest

from kvedge import access, errors
from kvedge.access import sessions
from kvedge.testing import sshd

PROGRAM = """
import sys
from kvedge import access, errors
key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtTXCjXpvyNRE3uQJ5Q3GTcPXJfPJrTwqQ9jM2d6aBq"
target = access.Target(name="edge1", namespace="default")
try:
    with access.connect(
        None, target, public_host_key=key, address=("127.0.0.1", int(sys.argv[1])),
        deadline_seconds=1,
    ):
        pass
except errors.KvedgeError as error:
    print(error.message)
"""


def hang_up(listener, tried):
    while True:
        try:
            listener.accept()[0].close()
        except OSError:
            return
        tried.append(True)


def test_a_booting_guest_is_tried_again_without_a_word():
    """No traceback of a single try is shown, only why it was given up."""
    tried = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=hang_up, args=(listener, tried), daemon=True).start()
        port = str(listener.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, port], capture_output=True, text=True, check=True
        )
    assert done.stdout.startswith("no ssh from 'vm.edge1.default' within 1 s: ")
    assert done.stderr == ""
    assert len(tried) > 1


@pytest.fixture
def log_in(tmp_path):
    """An ssh server in `tmp_path/guest`, and what logs in to it."""
    host_key, user_key = sshd.make_folder(tmp_path / "guest")
    target = access.Target(name="edge1", namespace="default")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(
            target=sshd.serve, args=(tmp_path / "guest", listener), daemon=True
        )
        serving.start()

        def connect(seconds):
            return access.connect(
                None, target, public_host_key=host_key, address=listener.getsockname(),
                identities=[user_key], deadline_seconds=seconds,
            )  # fmt: skip

        yield connect
        listener.shutdown(socket.SHUT_RDWR)
        serving.join()


def test_a_login_that_breaks_off_is_tried_again(log_in, tmp_path):
    """The guest restarts its sshd in the middle of a login: no refusal of the user."""
    drop = tmp_path / "guest/drop-login"
    drop.touch()
    with log_in(15) as session:
        assert session.output("echo in") == (0, "in\n", "")
    assert not drop.exists()


def test_a_login_that_takes_too_long_is_no_refusal(log_in, tmp_path, monkeypatch):
    """A busy guest is told as such, and its user's key is not blamed."""
    monkeypatch.setattr(sessions, "_LOGIN_SECONDS", 2.0)
    (tmp_path / "guest/login-seconds").write_text("60")
    with pytest.raises(errors.KvedgeError, match=r"no ssh .* within 0 s: Authentication timeout"):
        log_in(0).__enter__()
