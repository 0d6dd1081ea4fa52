"""Trying a guest whose sshd is not there yet."""

import socket
import subprocess
import sys
import threading

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
