"""X.509: devices that prove themselves by certificate, driven by azure-iot-device."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest
from azure.iot.device import X509, IoTHubDeviceClient, ProvisioningDeviceClient, exceptions
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

pytestmark = pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLSv1_2:DeprecationWarning")

REFUSED = (exceptions.CredentialError, exceptions.ConnectionFailedError, exceptions.ClientError)


class Signed:
    """A certificate with its key, in a file."""

    def __init__(self, name, *, issuer=None, ca=False, days=1):
        self.key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=30)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + datetime.timedelta(days=30 + days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(issuer.key if issuer else self.key, hashes.SHA256())
        )
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.chain = self.pem + (issuer.chain if issuer else "")

    @property
    def thumbprint(self):
        return self.certificate.fingerprint(hashes.SHA1()).hex().upper()

    def shown(self, folder):
        """Return the vendor's X509 of the whole chain."""
        folder = Path(folder)
        number = self.certificate.serial_number
        key = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (folder / f"{number}.key").write_bytes(key)
        (folder / f"{number}.crt").write_text(self.chain)
        return X509(str(folder / f"{number}.crt"), str(folder / f"{number}.key"))


@pytest.fixture
def device_client(hub, tmp_path):
    """Make a device client that shows a certificate."""
    made = []

    def make(name, signed, **options):
        client = IoTHubDeviceClient.create_from_x509_certificate(
            signed.shown(tmp_path), hub.host, name, **hub.device_options(**options)
        )
        made.append(client)
        return client

    yield make
    for client in made:
        client.shutdown()


@pytest.mark.parametrize("websockets", [False, True])
def test_a_thumbprint(registry, new_id, device_client, websockets):
    """A self-signed certificate with the primary or the secondary thumbprint connects."""
    name = new_id()
    first, second, foreign = Signed(name), Signed("any name", ca=True), Signed(name)
    registry.create_device_with_x509(name, first.thumbprint, second.thumbprint, "enabled")
    for signed in (first, second):
        client = device_client(name, signed, websockets=websockets)
        client.connect()
        assert client.get_twin()["desired"]["$version"] == 1
        client.send_message("hello")
        client.disconnect()
    with pytest.raises(REFUSED):
        device_client(name, foreign, websockets=websockets, connection_retry=False).connect()
    below = Signed(name, issuer=second)
    with pytest.raises(REFUSED):
        device_client(name, below, connection_retry=False).connect()


def test_one_thumbprint_is_one_device(registry, new_id, device_client):
    """A certificate that another device is known by does not open this one."""
    name, other = new_id(), new_id()
    signed = Signed(name)
    registry.create_device_with_x509(other, signed.thumbprint, signed.thumbprint, "enabled")
    registry.create_device_with_sas(name, "", "", "enabled")
    with pytest.raises(REFUSED):
        device_client(name, signed, connection_retry=False).connect()


def test_an_expired_certificate(registry, new_id, device_client):
    """A certificate that has ended is refused, whatever its thumbprint."""
    name = new_id()
    signed = Signed(name, days=-1)
    registry.create_device_with_x509(name, signed.thumbprint, signed.thumbprint, "enabled")
    with pytest.raises(REFUSED):
        device_client(name, signed, connection_retry=False).connect()


def test_a_changed_thumbprint_ends_the_connection(registry, new_id, device_client, eventually):
    """Rolling the certificate puts the old one out."""
    name = new_id()
    old, new = Signed(name), Signed(name)
    registry.create_device_with_x509(name, old.thumbprint, old.thumbprint, "enabled")
    client = device_client(name, old, connection_retry=False)
    client.connect()
    registry.update_device_with_x509(name, "*", new.thumbprint, new.thumbprint, "enabled")
    eventually(lambda: not client.connected)
    with pytest.raises(REFUSED):
        client.connect()
    device_client(name, new).connect()


def test_an_authority(call, registry, new_id, device_client):
    """A chain up to a known CA connects as the device in the leaf's common name only."""
    root = Signed("root", ca=True)
    middle = Signed("middle", issuer=root, ca=True)
    name, other = new_id(), new_id()
    for item in (name, other):
        registry.create_device_with_certificate_authority(item, "enabled")
    leaf = Signed(name, issuer=middle)
    with pytest.raises(REFUSED):
        device_client(name, leaf, connection_retry=False).connect()
    assert call("PUT", "/kvedge/v1/authorities/plant", {"certificate": leaf.pem})[0] == 400
    assert call("PUT", "/kvedge/v1/authorities/plant", {"certificate": root.pem})[0] == 200
    assert [item["name"] for item in call("GET", "/kvedge/v1/authorities")[1]] == ["plant"]
    client = device_client(name, leaf)
    client.connect()
    assert client.get_twin()["desired"]["$version"] == 1
    client.disconnect()
    with pytest.raises(REFUSED):
        device_client(other, leaf, connection_retry=False).connect()
    impostor = Signed(name, issuer=Signed("middle", issuer=Signed("root", ca=True), ca=True))
    with pytest.raises(REFUSED):
        device_client(name, impostor, connection_retry=False).connect()
    by_leaf = Signed(name, issuer=leaf)
    with pytest.raises(REFUSED):
        device_client(name, by_leaf, connection_retry=False).connect()
    assert call("DELETE", "/kvedge/v1/authorities/plant")[0] == 204
    with pytest.raises(REFUSED):
        device_client(name, leaf, connection_retry=False).connect()


@pytest.fixture
def provision(hub, call, tmp_path):
    """Provision a device that shows a certificate."""
    scope = call("GET", "/kvedge/v1/hub")[1]["idScope"]

    def run(name, signed):
        return ProvisioningDeviceClient.create_from_x509_certificate(
            hub.host, name, scope, signed.shown(tmp_path), **hub.device_options()
        ).register()

    return run


def test_provisioning_of_one_device(call, provision, registry, new_id, device_client):
    """An individual enrollment knows the device's certificate; the hub then knows it too."""
    name = new_id()
    signed = Signed(name)
    certificates = {"clientCertificates": {"primary": {"certificate": signed.pem}}}
    body = {"attestation": {"type": "x509", "x509": certificates}}
    status, kept = call("PUT", f"/enrollments/{name}", body)
    assert status == 200
    info = kept["attestation"]["x509"]["clientCertificates"]["primary"]["info"]
    assert info["sha1Thumbprint"] == signed.thumbprint
    with pytest.raises(REFUSED):
        provision(name, Signed(name))
    result = provision(name, signed)
    assert (result.status, result.registration_state.device_id) == ("assigned", name)
    assert registry.get_device(name).authentication.type == "selfSigned"
    client = device_client(name, signed)
    client.connect()
    assert client.connected


def test_provisioning_of_a_group(call, provision, new_id, device_client):
    """A group takes each device below its CA under the leaf's common name, and no other."""
    root = Signed("fleet root", ca=True)
    middle = Signed("plant", issuer=root, ca=True)
    certificates = {"signingCertificates": {"primary": {"certificate": root.pem}}}
    body = {"attestation": {"type": "x509", "x509": certificates}}
    assert call("PUT", "/enrollmentGroups/by-ca", body)[0] == 200
    name = new_id()
    leaf = Signed(name, issuer=middle)
    assert provision(name, leaf).registration_state.device_id == name
    device_client(name, leaf).connect()
    with pytest.raises(REFUSED):
        provision(new_id(), leaf)
    with pytest.raises(REFUSED):
        provision(name, Signed(name, issuer=Signed("fleet root", ca=True)))
    body["attestation"]["x509"] = {"caReferences": {"primary": "nobody"}}
    assert call("PUT", "/enrollmentGroups/by-ca", body)[0] == 400
    body["attestation"]["x509"] = {}
    assert call("PUT", "/enrollmentGroups/by-ca", body)[0] == 400
    assert call("DELETE", "/enrollmentGroups/by-ca")[0] == 204


@pytest.fixture
def ask(hub, call, tmp_path):
    """Send an HTTPS request that shows a certificate and no token, by a version of TLS."""

    def send(signed, method, path, body=None, *, version=ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cafile=hub.ca)
        context.minimum_version = context.maximum_version = version
        shown = signed.shown(tmp_path)
        context.load_cert_chain(shown.certificate_file, shown.key_file)
        status, _, answer = hub.ask(method, path, body, token="", context=context)
        return status, answer

    return send


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_requests_with_a_certificate(ask, registry, new_id, version):
    """A device's certificate reads its own modules over HTTPS, and nothing else."""
    name, other = new_id(), new_id()
    signed = Signed(name)
    registry.create_device_with_x509(name, signed.thumbprint, signed.thumbprint, "enabled")
    registry.create_device_with_sas(other, "", "", "enabled")
    registry.create_module_with_sas(name, "m", "me", "", "")
    status, modules = ask(signed, "GET", f"/devices/{name}/modules", version=version)
    assert (status, [item["moduleId"] for item in modules]) == (200, ["m"])
    for path in (f"/devices/{other}/modules", f"/twins/{name}", "/devices", "/configurations"):
        assert ask(signed, "GET", path, version=version)[0] == 401, path
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask(Signed(name), "GET", f"/devices/{name}/modules", version=version)


def test_provisioning_by_https(call, ask, registry, new_id):
    """A device below a group's CA registers over HTTPS, as aziot-identityd does."""
    scope = call("GET", "/kvedge/v1/hub")[1]["idScope"]
    root = Signed("https root", ca=True)
    assert call("PUT", "/kvedge/v1/authorities/https", {"certificate": root.pem})[0] == 200
    attestation = {"type": "x509", "x509": {"caReferences": {"primary": "https"}}}
    assert call("PUT", "/enrollmentGroups/by-https", {"attestation": attestation})[0] == 200
    name = new_id()
    leaf = Signed(name, issuer=root)
    place = f"/{scope}/registrations/{name}"
    status, started = ask(leaf, "PUT", f"{place}/register", {"registrationId": name})
    assert (status, started["status"]) == (202, "assigning")
    status, done = ask(leaf, "GET", f"{place}/operations/{started['operationId']}")
    assert (status, done["registrationState"]["deviceId"]) == (200, name)
    assert registry.get_device(name).authentication.type == "selfSigned"
    other = f"/{scope}/registrations/{new_id()}/register"
    assert ask(leaf, "PUT", other, {})[0] == 401
    for path in ("/enrollmentGroups/by-https", "/kvedge/v1/authorities/https"):
        assert call("DELETE", path)[0] == 204
