"""Building for real: equal digests by root and by a user, and no harm by kills, damage or company."""

import concurrent.futures
import hashlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from images import building, cache
from kvedge import errors, processes, tools

ROOT = Path(__file__).parents[3]
BASE = "python-container"
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The small base layer, built once in a store of its own."""
    store = cache.Store(tmp_path_factory.mktemp("store"))
    return store, building.build_base(BASE, store=store)


def _digest(entry):
    return hashlib.sha256((entry.path / "root.tar").read_bytes()).hexdigest()


def _workspaces():
    mine = f"kvedge-build-{os.getpid()}-"
    return [path for path in building.work_folder().glob("kvedge-build-*") if mine in path.name]


def test_a_second_build_is_a_hit(base):
    """A built layer is found at once, and building leaves no temporary tree behind."""
    store, entry = base
    began = time.monotonic()
    assert building.build_base(BASE, store=store) == entry
    assert time.monotonic() - began < 5
    assert _workspaces() == []


def test_a_damaged_layer_is_built_again(base):
    """A cut file is noticed, thrown away, and the new build has the same bytes."""
    store, entry = base
    digest = _digest(entry)
    with (entry.path / "root.tar").open("r+b") as file:
        file.truncate(1000)
    assert store.find(entry.key) is None
    assert _digest(building.build_base(BASE, store=store)) == digest


@pytest.mark.slow
def test_two_builds_at_once_make_one(tmp_path):
    """Two processes' worth of builders share one result."""
    store = cache.Store(tmp_path)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: building.build_base(BASE, store=store), range(2))
    assert first == second
    assert len(list((tmp_path / "steps").iterdir())) == 1


def test_a_killed_build_is_completed_by_the_next(tmp_path):
    """A build killed in the middle leaves no entry; the next build works and takes the remains away."""
    program = (
        "import sys; from pathlib import Path; from images import building, cache;"
        f"building.build_base({BASE!r}, store=cache.Store(Path(sys.argv[1])))"
    )
    child = processes.popen(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, log=tmp_path / "log"
    )
    mark = f"kvedge-build-{child.pid}-"
    deadline = time.monotonic() + 120
    while not [one for one in building.work_folder().glob(f"{mark}*/*") if one.name != "hooks"]:
        assert child.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    store = cache.Store(tmp_path)
    entry = building.build_base(BASE, store=store)
    assert store.verify(entry)
    assert list(building.work_folder().glob(f"{mark}*")) == []


class _Garbage:
    """A mirror whose every file is wrong."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/debian"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 8\r\n\r\ngarbage\n"
                )

    def close(self):
        self._socket.close()


def test_a_lying_mirror_is_refused(tmp_path, monkeypatch):
    """What is not signed by the archive is never unpacked; the error holds apt's words."""
    mirror = _Garbage()
    monkeypatch.setenv("KVEDGE_DEBIAN_MIRROR", mirror.url)
    try:
        with pytest.raises(errors.BuildFailed) as caught:
            building.build_base(BASE, store=cache.Store(tmp_path))
    finally:
        mirror.close()
    assert "mmdebstrap" in str(caught.value)
    assert not (tmp_path / "steps").exists()


def test_a_full_disk_is_told(tmp_path):
    """No space left is one sentence with the way out, and leaves nothing half."""

    def fill(folder):
        raise OSError(28, "No space left on device")

    store = cache.Store(tmp_path)
    with pytest.raises(errors.KvedgeError, match="no space left") as caught:
        store.make("k", fill)
    assert "gc" in caught.value.hint
    assert store.find("k") is None


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_root_and_user_build_the_same_image(tmp_path, monkeypatch):
    """The whole image has one digest: as root here, and as a user with another cache and folder."""
    if os.geteuid() != 0:
        pytest.fail("this comparison must be run as root")
    mine = building.build("debian-12-edge", store=cache.Store(tmp_path / "mine"))
    home = tmp_path / "home"
    home.mkdir()
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    os.chown(home, 4242, 4242)
    # A copy of the whole folder: a single file's mount would go when somebody replaces that file.
    processes.run(["cp", "-a", "/etc", tmp_path / "etc"], what="copy /etc")
    with (tmp_path / "etc/passwd").open("a") as file:
        file.write("builder:x:4242:4242::/nonexistent:/bin/sh\n")
    for name in ("subuid", "subgid"):
        (tmp_path / "etc" / name).write_text("builder:300000:65536\n")
    mke2fs = tools.ensure(["mke2fs"])["mke2fs"]
    shared = tmp_path / "tools"
    processes.run(["cp", "-a", mke2fs.parents[1], shared], what="share mke2fs")
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    script = 'mount --bind "$1/etc" /etc; cd "$1/home"; shift; exec "$@"'
    program = "import images; print(images.build('debian-12-edge').digest)"
    done = processes.run(
        [
            *("unshare", "--mount", "sh", "-euc", script, "sh", tmp_path),
            *("setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", "env", "-i"),
            f"HOME={home}",
            f"KVEDGE_CACHE={home}/cache",
            f"PATH={shared}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            f"PYTHONPATH={ROOT}:{packages}",
            "PYTHONDONTWRITEBYTECODE=1",
            *("/usr/bin/python3.11", "-P", "-c", program),
        ],
        what="build as a user",
    )
    assert done.stdout.split()[-1] == mine.digest
