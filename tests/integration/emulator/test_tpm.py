"""Provisioning with a TPM: swtpm is the TPM, tpm2-tools are the device, requests are raw HTTP.

None of the vendor's Python clients speaks to a TPM; its device client takes the finished token.
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import struct
import subprocess
import time
import urllib.parse

import pytest
from azure.iot.device import IoTHubDeviceClient

from kvedge.emulator import tokens
from kvedge.testing.waiting import until

pytestmark = pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLSv1_2:DeprecationWarning")

ENDORSEMENT, STORAGE = "0x81010001", "0x81000001"
"""Where every TPM of IoT Edge keeps its two keys."""
CREDENTIAL_HEAD = struct.pack("!II", 0xBADCC0DE, 1)
"""How tpm2-tools begin a file with a credential and its secret."""


class Tpm:
    """A TPM 2.0 of its own."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        port = free_pair()
        self.child = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}",
             "--server", f"type=tcp,port={port}", "--ctrl", f"type=tcp,port={port + 1}",
             "--flags", "not-need-init,startup-clear"],
        )  # fmt: skip
        self.environment = {**os.environ, "TPM2TOOLS_TCTI": f"swtpm:host=127.0.0.1,port={port}"}
        until(lambda: listens(port), seconds=10)
        self("createek", "-c", ENDORSEMENT, "-G", "rsa", "-u", "ek.pub")
        self("createprimary", "-C", "o", "-G", "rsa2048:aes128cfb", "-g", "sha256", "-c", "srk.ctx")
        self("evictcontrol", "-C", "o", "-c", "srk.ctx", STORAGE)
        self("readpublic", "-c", STORAGE, "-o", "srk.pub")

    def __call__(self, tool, *words):
        self._run(tool, *words)
        # Without a resource manager each tool leaves its objects in the TPM, which takes three.
        self._run("flushcontext", "--transient-object")

    def _run(self, tool, *words):
        done = subprocess.run(
            [f"tpm2_{tool}", *words], cwd=self.folder, env=self.environment,
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def public(self, name):
        return base64.b64encode((self.folder / f"{name}.pub").read_bytes()).decode()

    def take(self, sealed):
        """Take in a key that was sealed to this TPM."""
        raw = base64.b64decode(sealed)
        parts = []
        while raw:
            (size,) = struct.unpack_from("!H", raw)
            parts.append(raw[: 2 + size])
            raw = raw[2 + size :]
        credential, secret, duplicate, seed, public = parts
        for name, content in (
            ("credential", CREDENTIAL_HEAD + credential + secret),
            ("duplicate", duplicate), ("seed", seed), ("key.pub", public),
        ):  # fmt: skip
            (self.folder / name).write_bytes(content)
        self("startauthsession", "--policy-session", "-S", "session")
        self("policysecret", "-S", "session", "-c", "e")
        self("activatecredential", "-c", STORAGE, "-C", ENDORSEMENT, "-i", "credential",
             "-o", "inner", "-P", "session:session")  # fmt: skip
        self("flushcontext", "session")
        self("import", "-C", STORAGE, "-u", "key.pub", "-i", "duplicate", "-s", "seed",
             "-k", "inner", "-r", "key.priv")  # fmt: skip
        self("load", "-C", STORAGE, "-u", "key.pub", "-r", "key.priv", "-c", "key.ctx")

    def token(self, resource, policy=""):
        """Return a token that the TPM has signed with the key that it took in."""
        expiry = int(time.time()) + 600
        quoted = urllib.parse.quote(resource, safe="")
        (self.folder / "text").write_text(f"{quoted}\n{expiry}")
        self("hmac", "-c", "key.ctx", "-g", "sha256", "-o", "signature", "text")
        signature = base64.b64encode((self.folder / "signature").read_bytes())
        text = f"SharedAccessSignature sr={quoted}&sig={urllib.parse.quote(signature, safe='')}"
        return f"{text}&se={expiry}" + (f"&skn={policy}" if policy else "")

    def end(self):
        self.child.terminate()
        self.child.wait(10)


def free_pair():
    """Return a free port whose neighbour is free too."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            with contextlib.suppress(OSError):
                other.bind(("127.0.0.1", port + 1))
                return port


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port + 1)):
        return True
    return False


@pytest.fixture(scope="module")
def tpms(tmp_path_factory):
    """Two TPMs; drawing their keys takes them a second each."""
    folder = tmp_path_factory.mktemp("tpms")
    with contextlib.ExitStack() as stack:
        made = []
        for name in ("own", "other"):
            made.append(Tpm(folder / name))
            stack.callback(made[-1].end)
        yield made


def test_a_tpm_proves_its_device(hub, tpms):
    """A device is challenged, signs inside its TPM, is assigned, and connects with a second key."""
    own, other = tpms
    attestation = {"type": "tpm", "tpm": {"endorsementKey": own.public("ek")}}
    assert hub.ask("PUT", "/enrollments/pump-1", {"attestation": attestation})[0] == 200
    assert hub.ask("PUT", "/enrollmentGroups/g", {"attestation": attestation})[0] == 400
    scope = hub.ask("GET", "/kvedge/v1/hub")[2]["idScope"]
    place = f"/{scope}/registrations/pump-1"

    def register(shown, token=""):
        keys = {"endorsementKey": shown.public("ek"), "storageRootKey": shown.public("srk")}
        body = {"registrationId": "pump-1", "tpm": keys}
        status, _, answer = hub.ask("PUT", f"{place}/register", body, token=token)
        return status, answer

    assert "authenticationKey" not in register(other)[1]
    status, challenge = register(own)
    assert (status, challenge["keyName"]) == (401, "registration")
    own.take(challenge["authenticationKey"])
    guessed = tokens.issue(
        place[1:], tokens.new_key(), expiry=int(time.time()) + 60, policy="registration"
    )
    assert register(own, guessed)[0] == 401
    token = own.token(place[1:], "registration")
    status, started = register(own, token)
    assert (status, started["status"]) == (202, "assigning")
    operation = f"{place}/operations/{started['operationId']}"
    status, _, done = hub.ask("GET", operation, token=token)
    assert (status, done["status"]) == (200, "assigned")
    own.take(done["registrationState"]["tpm"]["authenticationKey"])
    client = IoTHubDeviceClient.create_from_sastoken(
        own.token(f"{hub.host}/devices/pump-1"), **hub.device_options()
    )
    client.connect()
    assert client.get_twin()["desired"]["$version"] == 1
    client.shutdown()


def test_only_that_tpm_can_use_the_key(hub, tpms):
    """Another TPM fails at the first step with what was sealed for the enrolled one."""
    own, other = tpms
    attestation = {"type": "tpm", "tpm": {"endorsementKey": own.public("ek")}}
    hub.ask("PUT", "/enrollments/pump-1", {"attestation": attestation})
    scope = hub.ask("GET", "/kvedge/v1/hub")[2]["idScope"]
    keys = {"endorsementKey": own.public("ek"), "storageRootKey": own.public("srk")}
    path = f"/{scope}/registrations/pump-1/register"
    challenge = hub.ask("PUT", path, {"tpm": keys}, token="")[2]
    with pytest.raises(AssertionError, match="Esys_ActivateCredential"):
        other.take(challenge["authenticationKey"])
