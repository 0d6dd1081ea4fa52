"""A container engine's API on a unix socket, with processes of this machine as containers.

It speaks the part of the Docker Engine API 1.41 that the runtime uses: version, networks, images
(create, inspect), containers (create, list by label, inspect, start, stop, restart, remove, logs)
and the event stream. Limits: an image is a name with an argv in `images`; pulling checks the name
and the credentials only; no isolation, no volumes but one trick: an environment value that is the
target of a bind is replaced by the bind's source; ExtraHosts are ignored; output is all stdout;
restart policies of the engine are ignored (the runtime sets none).
"""

from __future__ import annotations

import base64
import datetime
import http.server
import itertools
import json
import os
import queue
import signal
import socketserver
import struct
import subprocess
import threading
import time
import urllib.parse

NEVER = "0001-01-01T00:00:00Z"


def _now() -> str:
    moment = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    return f"{moment}123Z"


class DoubleContainer:
    """One container."""

    def __init__(self, name, body, argv, folder, engine):
        self.name, self.body, self.argv, self.engine = name, body, argv, engine
        self.log = folder / f"{name}-{id(self)}.log"
        self.log.touch()
        self.process = None
        self.state, self.exit_code = "created", 0
        self.started = self.finished = NEVER

    def environment(self):
        binds = dict(
            reversed(bind.split(":")[:2]) for bind in self.body["HostConfig"].get("Binds", [])
        )
        env = dict(entry.split("=", 1) for entry in self.body.get("Env") or [])
        return {key: binds.get(value, value) for key, value in env.items()}

    def start(self):
        if self.state == "running":
            return
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.argv,
                env={"PATH": os.environ["PATH"], **self.environment()},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.state, self.started, self.exit_code = "running", _now(), 0
        self.engine.emit("start", self)
        threading.Thread(target=self._wait, args=(self.process,), daemon=True).start()

    def _wait(self, process):
        code = process.wait()
        self.exit_code = code if code >= 0 else 128 - code
        self.state, self.finished = "exited", _now()
        self.engine.emit("die", self)

    def stop(self, sig=signal.SIGTERM, timeout=10):
        process = self.process
        if process is None or self.state != "running":
            return
        process.send_signal(sig)
        deadline = time.monotonic() + timeout
        while self.state == "running":
            if time.monotonic() > deadline:
                process.kill()
                deadline += 1000
            time.sleep(0.01)

    def inspect(self):
        return {
            "Id": self.name,
            "Name": f"/{self.name}",
            "Image": "sha256:" + "1" * 64,
            "State": {
                "Status": self.state,
                "ExitCode": self.exit_code,
                "StartedAt": self.started,
                "FinishedAt": self.finished,
            },
            "Config": {
                "Image": self.body["Image"],
                "Labels": self.body.get("Labels") or {},
                "Tty": False,
                "Env": self.body.get("Env"),
            },
            "HostConfig": self.body["HostConfig"],
        }


class Engine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """The engine; `images` maps references to argv, `private` registries to user and password."""

    daemon_threads = True

    def __init__(self, folder, *, gateway="127.0.0.1"):
        self.folder, self.gateway = folder, gateway
        self.path = folder / "docker.sock"
        self.images: dict[str, list[str]] = {}
        self.private: dict[str, tuple[str, str]] = {}
        self.pulled: list[str] = []
        self.containers: dict[str, DoubleContainer] = {}
        self.networks: set[str] = set()
        self.listeners: list[queue.SimpleQueue] = []
        super().__init__(str(self.path), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def emit(self, action, container):
        event = {"Type": "container", "Action": action, "Actor": {"ID": container.name}}
        for listener in self.listeners:
            listener.put(event)

    def close(self):
        for container in list(self.containers.values()):
            container.stop(signal.SIGKILL)
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self):
        return "local"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._route()

    do_POST = do_DELETE = do_GET  # noqa: N815 - the base class looks for these names

    def _route(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        parts = url.path.removeprefix("/v1.41/").split("/")
        engine = self.server
        match (self.command, parts):
            case ("GET", ["version"]):
                self._json(200, {"ApiVersion": "1.41", "Version": "20.10.24"})
            case ("GET", ["networks", name]):
                if name not in engine.networks:
                    self._json(404, {"message": f"network {name} not found"})
                else:
                    pool = {"Subnet": "172.18.0.0/16", "Gateway": engine.gateway}
                    self._json(200, {"Name": name, "IPAM": {"Config": [pool]}})
            case ("POST", ["networks", "create"]):
                engine.networks.add(body["Name"])
                self._json(201, {"Id": body["Name"]})
            case ("POST", ["images", "create"]):
                self._pull(query)
            case ("GET", ["images", *name, "json"]):
                known = urllib.parse.unquote("/".join(name)) in engine.pulled
                self._json(200 if known else 404, {"message": "no such image"})
            case ("GET", ["events"]):
                self._events()
            case ("GET", ["containers", "json"]):
                label = json.loads(query["filters"])["label"][0]
                key, _, value = label.partition("=")
                self._json(
                    200,
                    [
                        {"Id": found.name, "Names": [f"/{found.name}"]}
                        for found in engine.containers.values()
                        if (found.body.get("Labels") or {}).get(key) == value
                    ],
                )
            case ("POST", ["containers", "create"]):
                self._create(query["name"], body)
            case (_, ["containers", name, *rest]):
                container = engine.containers.get(name)
                if container is None:
                    self._json(404, {"message": f"No such container: {name}"})
                else:
                    self._container(container, rest, query)
            case _:
                self._json(404, {"message": "page not found"})

    def _container(self, container, rest, query):
        match (self.command, rest):
            case ("GET", ["json"]):
                self._json(200, container.inspect())
            case ("GET", ["logs"]):
                self._logs(container, query)
            case ("POST", ["start"]):
                try:
                    container.start()
                except OSError as error:
                    self._json(400, {"message": f"failed to create shim: {error}"})
                else:
                    self._empty()
            case ("POST", ["stop"]):
                container.stop()
                self._empty()
            case ("POST", ["restart"]):
                container.stop()
                container.start()
                self._empty()
            case ("DELETE", []):
                container.stop(signal.SIGKILL)
                self.server.containers.pop(container.name, None)
                self.server.emit("destroy", container)
                self._empty()
            case _:
                self._json(404, {"message": "page not found"})

    def _pull(self, query):
        reference = f"{query['fromImage']}:{query['tag']}"
        registry = reference.partition("/")[0]
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._chunk(json.dumps({"status": f"Pulling from {reference}"}).encode() + b"\r\n")
        auth = self.headers.get("X-Registry-Auth")
        given = json.loads(base64.urlsafe_b64decode(auth)) if auth else {}
        wanted = self.server.private.get(registry)
        if wanted and (given.get("username"), given.get("password")) != wanted:
            problem = f"Head {reference}: no basic auth credentials"
        elif reference not in self.server.images:
            problem = f"manifest for {reference} not found: manifest unknown"
        else:
            problem = ""
            self.server.pulled.append(reference)
        if problem:
            text = {"errorDetail": {"message": problem}, "error": problem}
            self._chunk(json.dumps(text).encode() + b"\r\n")
        self._chunk(b"")

    def _create(self, name, body):
        if name in self.server.containers:
            self._json(409, {"message": f"Conflict. The container name {name!r} is in use"})
        elif body["Image"] not in self.server.pulled:
            self._json(404, {"message": f"No such image: {body['Image']}"})
        else:
            argv = self.server.images[body["Image"]]
            self.server.containers[name] = DoubleContainer(
                name, body, argv, self.server.folder, self.server
            )
            self._json(201, {"Id": name, "Warnings": []})

    def _logs(self, container, query):
        lines = container.log.read_bytes().splitlines(keepends=True)
        if query.get("tail", "all") != "all":
            lines = lines[-int(query["tail"]) :] if int(query["tail"]) else []
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            self._chunk(struct.pack(">BxxxI", 1, len(line)) + line)
        self._chunk(b"")

    def _events(self):
        listener = queue.SimpleQueue()
        self.server.listeners.append(listener)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for _ in itertools.count():
                self._chunk(json.dumps(listener.get()).encode() + b"\n")
        except OSError:
            self.server.listeners.remove(listener)

    def _chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _json(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _empty(self):
        self.send_response(204)
        self.end_headers()
