"""The runtime as a process, against our hub by the vendor's client and a double of the engine."""

from __future__ import annotations

import base64
import gzip
import json
import signal
import sys
from pathlib import Path

import pytest

from kvedge.edgesim.containers import OWNER

ROOT = Path(__file__).parents[3]
SENSOR = [sys.executable, str(ROOT / "images/modules/temperature_sensor/main.py")]
IMAGE = "registry.test/sensor:1.0"
pytestmark = pytest.mark.timeout(120)


def module(image=IMAGE, **more):
    """Return a module of a deployment."""
    return {
        "type": "docker",
        "status": "running",
        "restartPolicy": "always",
        "settings": {"image": image},
        **more,
    }


def sleeper(text="x"):
    """Return an argv that prints a line and waits."""
    return [sys.executable, "-uc", f"print({text!r}); import signal; signal.pause()"]


def running(name):
    """Return a probe: the module runs in the newest deployment."""
    return lambda found: found["modules"][name]["runtimeStatus"] == "running"


def test_module_runs_and_is_reported_as_the_real_agent_does(hub, edge):
    """Deployment to container to report, with the fields of the real agent."""
    edge.engine.images[IMAGE] = sleeper()
    options = {"Cmd": ["y" * 600], "HostConfig": {"Binds": ["/a:/b"]}}
    text = json.dumps(options)
    settings = {"image": IMAGE, "createOptions": text[:512], "createOptions01": text[512:]}
    hub.deploy(
        edge.device, {"m": module(settings=settings, env={"A": {"value": "1"}}, startupOrder=3)}
    )
    edge.start()
    found = edge.wait_report(running("m"))
    desired = hub.twin(edge.device)["properties"]["desired"]
    assert found["lastDesiredVersion"] == desired["$version"]
    assert found["lastDesiredStatus"] == {"code": 200, "description": ""}
    assert found["systemModules"]["edgeAgent"]["runtimeStatus"] == "running"
    assert found["schemaVersion"] == "1.1"
    reported = found["modules"]["m"]
    assert reported["settings"]["image"] == IMAGE
    assert reported["settings"]["imageHash"].startswith("sha256:")
    assert reported["startupOrder"] == 3
    assert (reported["exitCode"], reported["restartCount"]) == (0, 0)
    assert reported["lastStartTimeUtc"] > "2026"
    body = edge.engine.containers["m"].body
    assert body["Cmd"] == ["y" * 600]
    assert "A=1" in body["Env"]
    assert body["Labels"][OWNER.partition("=")[0]]
    assert body["HostConfig"]["NetworkMode"] == "azure-iot-edge"
    assert body["HostConfig"]["Binds"][0] == "/a:/b"


def test_module_that_left_is_removed_and_changed_one_is_replaced(hub, edge):
    """The containers follow the deployment in both directions."""
    edge.engine.images |= {IMAGE: sleeper(), "registry.test/other:2": sleeper()}
    hub.deploy(edge.device, {"a": module(), "b": module()})
    edge.start()
    edge.wait_report(lambda found: running("a")(found) and running("b")(found))
    first = edge.engine.containers["a"]
    hub.deploy(edge.device, {"a": module(image="registry.test/other:2")})
    edge.wait_report(
        lambda found: "b" not in found["modules"]
        and found["modules"]["a"]["settings"]["image"] == "registry.test/other:2"
        and running("a")(found)
    )
    assert set(edge.engine.containers) == {"a"}
    assert edge.engine.containers["a"] is not first
    hub.deploy(edge.device, {"a": module(image="registry.test/other:2", status="stopped")})
    found = edge.wait_report(lambda found: found["modules"]["a"]["runtimeStatus"] != "running")
    assert found["modules"]["a"]["status"] == "stopped"


def test_failed_pull_is_reported_and_retried(hub, edge):
    """Code 500 names the image; once the image is there the deployment succeeds."""
    edge.engine.images["registry.test/good:1"] = sleeper()
    hub.deploy(edge.device, {"good": module(image="registry.test/good:1"), "m": module()})
    edge.start()
    found = edge.wait_report(lambda found: found["lastDesiredStatus"]["code"] == 500)
    assert IMAGE in found["lastDesiredStatus"]["description"]
    edge.wait_report(running("good"))
    edge.engine.images[IMAGE] = sleeper()
    found = edge.wait_report(running("m"))
    assert found["lastDesiredStatus"]["code"] == 200


def test_registry_credentials_are_used(hub, edge):
    """A private registry gets the deployment's user and password, another one does not."""
    edge.engine.images["private.test/m:1"] = sleeper()
    edge.engine.private["private.test"] = ("robot", "secret")
    runtime = {
        "type": "docker",
        "settings": {
            "registryCredentials": {
                "other": {"username": "x", "password": "y", "address": "other.test"},
                "mine": {"username": "robot", "password": "secret", "address": "private.test"},
            }
        },
    }
    hub.deploy(edge.device, {"m": module(image="private.test/m:1")}, agent={"runtime": runtime})
    edge.start()
    found = edge.wait_report(running("m"))
    assert "secret" not in json.dumps(found)


def test_crashing_module_goes_through_backoff_to_restart(hub, edge):
    """Exit code, count and back-off are told, and the module is started again."""
    edge.engine.images[IMAGE] = [sys.executable, "-c", "raise SystemExit(7)"]
    hub.deploy(edge.device, {"m": module(restartPolicy="on-failure")})
    edge.start()
    found = edge.wait_report(
        lambda found: found["modules"]["m"]["runtimeStatus"] == "backoff"
        and found["modules"]["m"]["restartCount"] >= 2
    )
    assert found["modules"]["m"]["exitCode"] == 7
    assert found["modules"]["m"]["lastRestartTimeUtc"] > "2026"


def test_bad_deployment_is_refused_with_its_code(hub, edge):
    """A broken createOptions is 400 and leaves what runs alone."""
    edge.engine.images[IMAGE] = sleeper()
    hub.deploy(edge.device, {"m": module()})
    edge.start()
    edge.wait_report(running("m"))
    hub.deploy(edge.device, {"m": module(settings={"image": IMAGE, "createOptions": "{"})})
    found = edge.wait_report(lambda found: found["lastDesiredStatus"]["code"] == 400)
    assert "createOptions" in found["lastDesiredStatus"]["description"]
    assert edge.engine.containers["m"].state == "running"


def test_direct_methods(hub, edge):
    """Ping, logs in both encodings, restart, and the real codes for mistakes."""
    edge.engine.images[IMAGE] = sleeper("hello log")
    hub.deploy(edge.device, {"m": module(), "other": module()})
    edge.start()
    edge.wait_report(lambda found: running("m")(found) and running("other")(found))

    def invoke(name, payload=None):
        status, answer = hub.invoke(edge.device, "$edgeAgent", name, payload)
        assert status == 200, answer
        return answer["status"], answer["payload"]

    assert invoke("ping")[0] == 200
    request = {"schemaVersion": "1.0", "items": [{"id": "^m$", "filter": {"tail": 10}}]}
    assert invoke("GetModuleLogs", request) == (200, [{"id": "m", "payload": "hello log\n"}])
    status, (entry,) = invoke("GetModuleLogs", {**request, "encoding": "gzip"})
    assert gzip.decompress(base64.b64decode(entry["payloadBytes"])) == b"hello log\n"
    status, entries = invoke("GetModuleLogs", {"schemaVersion": "1.0", "items": {"id": "."}})
    assert {entry["id"] for entry in entries} == {"edgeAgent", "edgeHub", "m", "other"}
    started = edge.engine.containers["m"].started
    assert invoke("RestartModule", {"schemaVersion": "1.0", "id": "m"})[0] == 200
    assert edge.engine.containers["m"].started > started
    status, payload = invoke("RestartModule", {"schemaVersion": "1.0", "id": "nope"})
    assert (status, "not found" in payload["message"]) == (500, True)
    assert invoke("GetModuleLogs", {"items": []})[0] == 400
    status, payload = invoke("Explode")
    assert (status, "supported commands" in payload["message"]) == (400, True)


def test_restarted_daemon_adopts_what_runs(hub, edge):
    """A killed runtime finds its containers again and restarts none."""
    edge.engine.images[IMAGE] = sleeper()
    hub.deploy(edge.device, {"m": module()})
    edge.start()
    edge.wait_report(running("m"))
    container = edge.engine.containers["m"]
    started = container.started
    edge.stop(signal.SIGKILL)
    hub.deploy(edge.device, {"m": module(), "n": module()})
    edge.start()
    edge.wait_report(lambda found: running("n")(found))
    assert edge.engine.containers["m"] is container
    assert container.started == started


def test_other_hub_is_refused(edge, tmp_path):
    """A server without the emulator's header ends the runtime with a code that systemd obeys."""
    import http.server
    import ssl
    import threading

    server = http.server.HTTPServer((edge.address, 0), http.server.SimpleHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    from kvedge.edgesim.certificates import ensure_certificates

    files = ensure_certificates(tmp_path / "pki", hostname=edge.address, trust_bundle="")
    context.load_cert_chain(files.server, files.server_key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        edge.configure(hub=f"{edge.address}:{server.server_port}", ca=files.authority)
        edge.start()
        assert edge.process.wait(30) == 153
    finally:
        server.shutdown()
        server.server_close()
    assert "not kvedge's emulator" in (edge.folder / "daemon.log").read_text()


def test_iotedge_program_talks_to_the_daemon(hub, edge):
    """List, logs, restart, version, and a clear word when the daemon is away."""
    edge.engine.images[IMAGE] = sleeper("hello log")
    hub.deploy(edge.device, {"m": module()})
    edge.start()
    edge.wait_report(running("m"))
    listed = edge.iotedge("list")
    lines = [line.split() for line in listed.stdout.splitlines()]
    assert lines[0] == ["NAME", "STATUS", "DESCRIPTION", "Config"]
    assert [line[0] for line in lines[1:]] == ["edgeAgent", "edgeHub", "m"]
    assert lines[3][1:3] == ["running", "Up"]
    assert lines[3][-1] == IMAGE
    assert edge.iotedge("logs", "m").stdout == "hello log\n"
    assert "kvedge stand-in runtime" in edge.iotedge("logs", "edgeAgent").stdout
    assert edge.iotedge("restart", "m").stdout == "m\n"
    missing = edge.iotedge("logs", "nope")
    assert (missing.returncode, "not found" in missing.stderr) == (1, True)
    assert edge.stop() == 0
    away = edge.iotedge("list")
    assert (away.returncode, "cannot reach the daemon" in away.stderr) == (1, True)


def test_reboot_starts_what_ran_and_leaves_what_was_done(hub, edge):
    """A shutdown's clean exit is no end of the module; a job that ended by itself stays ended."""
    edge.engine.images |= {
        IMAGE: [
            sys.executable,
            "-uc",
            "import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); signal.pause()",
        ],
        "registry.test/job:1": [sys.executable, "-c", "pass"],
    }
    modules = {
        "m": module(restartPolicy="on-failure"),
        "job": module(image="registry.test/job:1", restartPolicy="on-failure"),
    }
    hub.deploy(edge.device, modules)
    edge.start()
    edge.wait_report(
        lambda found: running("m")(found) and found["modules"]["job"]["runtimeStatus"] == "stopped"
    )
    edge.stop()
    edge.engine.containers["m"].stop()
    assert edge.engine.containers["m"].exit_code == 0
    for container in edge.engine.containers.values():
        container.finished = "2001-01-01T00:00:00.000000000Z"
    started = edge.engine.containers["job"].started
    edge.start()
    found = edge.wait_report(
        lambda found: running("m")(found) and found["modules"]["m"]["lastExitTimeUtc"] < "2002"
    )
    assert found["modules"]["m"]["restartCount"] == 0
    assert found["modules"]["job"]["runtimeStatus"] == "stopped"
    assert edge.engine.containers["job"].started == started
