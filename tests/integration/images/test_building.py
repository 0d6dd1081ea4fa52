"""Building for real: equal digests by root and by a user, and no harm by kills, damage or company."""

import concurrent.futures
import hashlib
import http.server
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import images
from images import (
    building,
    cache,
    inspecting,
    locking,
    packaging,
    recipe,
    relocking,
    scanning,
    sources,
    trees,
)
from kvedge import errors, processes, tools
from kvedge.testing.waiting import until

ROOT = Path(__file__).parents[3]
BASE = "python-container"
DISK = "debian-12-edge"
pytestmark = pytest.mark.timeout(1200)


_BUILD = (
    "import sys; from pathlib import Path; from images import building, cache;"
    f"entry = building.build_base({BASE!r}, store=cache.Store(Path(sys.argv[1])));"
    "print((entry.path / 'entry.json').stat().st_ino)"
)


@pytest.fixture(scope="module")
def built_twice(tmp_path_factory):
    """A store of its own in which two processes built the small base layer at once; their words."""
    folder = tmp_path_factory.mktemp("store")
    argv = [sys.executable, "-c", _BUILD, folder]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = pool.map(lambda _: processes.run(argv, what="build", cwd=ROOT).stdout, range(2))
        return folder, [run.split()[-1] for run in runs]


@pytest.fixture(scope="module")
def base(built_twice):
    """The small base layer and its store."""
    store = cache.Store(built_twice[0])
    return store, building.build_base(BASE, store=store)


def _digest(entry):
    return hashlib.sha256((entry.path / "root.tar").read_bytes()).hexdigest()


def _workspaces():
    mine = f"kvedge-build-{os.getpid()}-"
    return [path for path in packaging.work_folder().glob("kvedge-build-*") if mine in path.name]


def test_two_builds_at_once_make_one(built_twice):
    """Two processes that build one recipe at once share one result; the second waits."""
    folder, (first, second) = built_twice
    assert first == second
    assert len(list((folder / "steps").iterdir())) == 1
    assert list((folder / "tmp").iterdir()) == []


def test_a_second_build_is_a_hit(base):
    """A built layer is found at once, and building leaves no temporary tree behind."""
    store, entry = base
    began = time.monotonic()
    assert building.build_base(BASE, store=store) == entry
    assert time.monotonic() - began < 5
    assert _workspaces() == []


def test_a_damaged_layer_is_built_again_also_after_a_kill(base, tmp_path):
    """A cut file is noticed; a build killed in the middle leaves no entry; the next makes it whole.

    The new bytes are the old ones, and what the killed build left in memory is taken away.
    """
    store, entry = base
    digest = _digest(entry)
    with (entry.path / "root.tar").open("r+b") as file:
        file.truncate(1000)
    assert store.find(entry.key) is None
    child = processes.popen(
        [sys.executable, "-c", _BUILD, store.root], cwd=ROOT, log=tmp_path / "log"
    )
    mark = f"kvedge-build-{child.pid}-"

    def begun():
        if child.poll() is not None:
            pytest.fail((tmp_path / "log").read_text())
        return [one for one in packaging.work_folder().glob(f"{mark}*/*") if one.name != "hooks"]

    until(begun, "packages are being unpacked", seconds=120)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert store.find(entry.key) is None
    again = building.build_base(BASE, store=store)
    assert store.verify(again)
    assert _digest(again) == digest
    assert list(packaging.work_folder().glob(f"{mark}*")) == []


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


class _Mirror(http.server.BaseHTTPRequestHandler):
    """A mirror that hands on what this machine's own sources have, but for one byte of packages."""

    archives: dict[str, str]
    """Address of the archive behind each folder."""

    def do_GET(self):
        top, _, path = self.path.lstrip("/").partition("/")
        try:
            with urllib.request.urlopen(f"{self.archives[top]}/{path}", timeout=60) as answer:
                data = bytearray(answer.read())
        except urllib.error.HTTPError as error:
            self.send_error(error.code)
            return
        if path.endswith(".deb"):
            data[-1] ^= 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        """Say nothing."""


def test_a_machines_mirror_is_known_before_its_lists_are_fetched(tmp_path, monkeypatch):
    """What this machine's apt is set to counts, also where nobody ran `apt-get update`."""
    (tmp_path / "sources.list").write_text(
        "deb http://mirror.example/debian/ bookworm main contrib\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        "deb http://mirror.example/debian bookworm-backports main\n"
        "deb http://mirror.example/debian-security bookworm-security main\n"
    )
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list"; Dir::Etc::sourceparts "/dev/null";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    assert sources.configured() == {
        "bookworm": ["http://mirror.example/debian"],
        "bookworm-security": ["http://mirror.example/debian-security"],
    }


def test_a_package_with_another_hash_is_refused(tmp_path, monkeypatch):
    """A package that is not the one that the archive signed ends the build; nothing is kept."""
    wanted, known = recipe.load(BASE).apt, sources.configured()
    archives = {
        "debian": known.get("bookworm", [wanted.mirror])[0],
        "debian-security": known.get("bookworm-security", [wanted.security_mirror])[0],
    }
    mirror = type("Mirror", (_Mirror,), {"archives": archives})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), mirror) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/debian"
        monkeypatch.setenv("KVEDGE_DEBIAN_MIRROR", url)
        with pytest.raises(errors.BuildFailed) as caught:
            building.build_base(BASE, store=cache.Store(tmp_path))
        server.shutdown()
    assert "Hash Sum mismatch" in caught.value.tail
    assert not (tmp_path / "steps").exists()


def _primed(tmp_path, upto):
    """A store of one's own with the disk image's results below a kind of step, and the plan."""
    images.build(DISK)
    plan = building.plan_of(recipe.load(DISK))
    source, store = cache.default_store(), cache.Store(tmp_path / "store")
    for step in plan.steps:
        if step.kind == upto and (upto != "layer" or step is plan.steps[-3]):
            return plan, step, store
        entry = source.find(step.key) or building.make_step(plan, step, source)
        folder = store.root / "steps" / step.key
        shutil.copytree(entry.path, folder, copy_function=_linked)
    raise AssertionError(upto)


def _linked(source, target):
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


_MAKE = (
    "import sys; from pathlib import Path; from images import building, cache, recipe;"
    f"plan = building.plan_of(recipe.load({DISK!r}));"
    "step = next(one for one in plan.steps if one.key == sys.argv[2]);"
    "building.make_step(plan, step, cache.Store(Path(sys.argv[1])))"
)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("root", marks=pytest.mark.slow),
        pytest.param("layer", marks=pytest.mark.slow),
        "disk",
        "oci",
    ],
)
def test_a_kill_in_each_step_does_no_harm(tmp_path, kind):
    """Killed in the middle of a step, it leaves no entry; the next try makes the same bytes."""
    plan, step, store = _primed(tmp_path, kind)
    child = processes.popen(
        [sys.executable, "-c", _MAKE, store.root, step.key], cwd=ROOT, log=tmp_path / "log"
    )

    def begun():
        if child.poll() is not None:
            pytest.fail((tmp_path / "log").read_text())
        return list((store.root / "tmp").glob("*/*"))

    until(begun, "the step has begun", seconds=300, pause=0.002)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert store.find(step.key) is None
    made = building.make_step(plan, step, store)
    wanted = cache.default_store()
    if kind in ("root", "layer"):
        # Of packages, only trees of the same day are alike.
        _, _, wanted = _primed(tmp_path / "fresh", kind)
    assert made.files == building.make_step(plan, step, wanted).files


def test_a_kill_while_packages_install_leaves_no_mounts(tmp_path):
    """What the tree had mounted goes with the build; cleaning up does not reach the machine's own."""
    _, step, store = _primed(tmp_path, "root")
    child = processes.popen(
        [sys.executable, "-c", _MAKE, store.root, step.key], cwd=ROOT, log=tmp_path / "log"
    )
    mark = f"kvedge-build-{child.pid}-"

    def installing():
        if child.poll() is not None:
            pytest.fail((tmp_path / "log").read_text())
        return list(packaging.work_folder().glob(f"{mark}*/mmdebstrap.*/.kvedge-units"))

    until(installing, "packages are being installed", seconds=300, pause=0.02)
    mounts = Path("/proc/mounts").read_text()
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert mark not in mounts
    assert mark not in Path("/proc/mounts").read_text()
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as mine:
        with packaging.workspace():
            assert list(packaging.work_folder().glob(f"{mark}*")) == []
        assert Path(mine.name).exists()


@pytest.mark.parametrize(("room", "memory"), [("1m", "4g"), ("100m", "4g"), ("300m", "1m")])
def test_a_full_disk_is_told(tmp_path, room, memory):
    """No space left is one sentence with the way out, and leaves nothing half.

    With memory the raw disk is made there, else on the small disk.
    """
    _, step, store = _primed(tmp_path, "disk")
    (store.root / "tmp").mkdir()
    script = (
        'mount -t tmpfs -o size="$1" none "$2"; mount -t tmpfs -o size="$3" none /dev/shm\n'
        'export TMPDIR="$2"; shift 3; exec "$@"'
    )
    program = f"from kvedge import errors\ntry: {_MAKE.replace(';', '; ')}\n".replace(
        "try: ", "try:\n    "
    ) + (
        "except errors.KvedgeError as error:\n"
        "    print(error.message, '|', error.hint)\n"
        "else:\n    raise SystemExit('it fitted')\n"
    )
    done = processes.run(
        [
            *("unshare", "--user", "--map-root-user", "--mount", "sh", "-euc", script, "sh"),
            *(room, store.root / "tmp", memory),
            *(sys.executable, "-c", program, store.root, step.key),
        ],
        what="build on a small disk",
        cwd=ROOT,
    )
    assert "no space left" in done.stdout
    assert "kvedge image gc" in done.stdout
    assert store.find(step.key) is None


def test_flipped_bits_below_are_not_built_upon(tmp_path):
    """A layer whose bytes changed in the cache is forgotten, not made into a disk."""
    plan, step, store = _primed(tmp_path, "disk")
    entry = store.find(step.below)
    file = entry.path / "root.tar"
    own = file.with_suffix(".copy")
    shutil.copy(file, own)
    with own.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    own.replace(file)
    assert [one.kind for one in building.missing(plan, store)] == ["layer", "disk", "oci"]
    assert store.find(step.below) is None


def test_lower_layers_are_not_needed_for_a_result_that_is_there(tmp_path):
    """After a collection a disk is made of its tree alone, without the layers below that."""
    plan, _step, store = _primed(tmp_path, "disk")
    for lower in plan.steps[:-3]:
        store.drop(lower.key)
    assert [one.kind for one in building.missing(plan, store)] == ["disk", "oci"]


def test_a_lock_holds_what_is_built(tmp_path):
    """`lock` writes the versions of the built image, `diff` sees none that differ."""
    images.build(DISK)
    file = tmp_path / "mine.toml"
    shutil.copy(ROOT / "images" / "recipes" / f"{DISK}.toml", file)
    lock, changes = relocking.relock(str(file), fresh=False)
    assert lock == tmp_path / "mine.lock"
    held = inspecting.packages_of(str(lock))
    assert {change.package for change in changes} == set(held)
    built = inspecting.packages_of(DISK)
    assert built.items() - held.items() == {("aziot-edge", built["aziot-edge"])}
    assert building.plan_of(recipe.load(str(file))).key != images.key(DISK)


SMALL = """
name = "small"
os = "debian"
release = "bookworm"
arch = "amd64"
epoch = 2026-11-21T00:00:00Z
[apt]
suites = ["bookworm", "bookworm-updates", "bookworm-security"]
components = ["main"]
keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
mirror = "http://deb.debian.org/debian"
security_mirror = "http://deb.debian.org/debian-security"
[[layers]]
name = "base"
packages = ["busybox-static"]
"""


def test_a_stale_lock_is_told_and_the_build_goes_on(tmp_path):
    """Where the archive has a locked version no more, the newest is taken and reported."""
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    held = locking.Lock(recipe="small", packages=(("busybox-static", "1:0-gone"),))
    file.with_suffix(".lock").write_text(locking.render(held))
    entry = building.build_base(str(file), store=cache.Store(tmp_path / "store"))
    with (entry.path / "root.tar").open("rb") as stream:
        found = scanning.packages(trees.TarTree(stream))
    stale = {one.package: one for one in building.stale(recipe.load(str(file)), found)}
    newest = next(one.version for one in found if one.name == "busybox-static")
    assert (stale["busybox-static"].before, stale["busybox-static"].after) == ("1:0-gone", newest)


@pytest.mark.slow
def test_a_fresh_lock_holds_what_the_archive_has(tmp_path):
    """`lock --fresh` builds the packages anew without the old lock, and the next build has them."""
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    held = locking.Lock(recipe="small", packages=(("busybox-static", "1:0-gone"),))
    file.with_suffix(".lock").write_text(locking.render(held))
    lock, changes = relocking.relock(str(file), fresh=True)
    (change,) = [one for one in changes if one.package == "busybox-static"]
    assert change.before == "1:0-gone"
    entry = building.build_base(str(file), store=cache.Store(tmp_path / "store"))
    with (entry.path / "root.tar").open("rb") as stream:
        found = scanning.packages(trees.TarTree(stream))
    assert building.stale(recipe.load(str(file)), found) == []
    assert lock == file.with_suffix(".lock")


OWN = """
[[sources]]
name = "plant"
uri = "file://{folder}/apt"
suite = "stable"
components = ["main"]
key = "./plant.asc"
fingerprint = "{fingerprint}"
[[layers]]
name = "plant"
sources = ["plant"]
packages = ["plant-agent=2.4.1"]
debs = ["./vendor-driver_1.0_amd64.deb"]
"""
_ARCHIVE = """
set -eu
deb() { # name, version
    mkdir -p "$1/DEBIAN" "$1/opt/$1"
    echo "$2" >"$1/opt/$1/version"
    printf 'Package: %s\\nVersion: %s\\nArchitecture: amd64\\nMaintainer: p <p@plant.example>\\n' "$1" "$2" \\
        >"$1/DEBIAN/control"
    echo "Description: for a test" >>"$1/DEBIAN/control"
    dpkg-deb --root-owner-group -b "$1" "$3" >/dev/null
}
top=apt/dists/stable; list=main/binary-amd64/Packages
mkdir -p -m 700 keys
mkdir -p apt/pool "$top/main/binary-amd64"
deb plant-agent 2.4.1 apt/pool
deb plant-agent 2.5.0 apt/pool
deb vendor-driver 1.0 .
for file in apt/pool/*.deb; do
    dpkg-deb -f "$file"
    printf 'Filename: %s\\nSize: %s\\nSHA256: %s\\n\\n' "${file#apt/}" \\
        "$(stat -c %s "$file")" "$(sha256sum "$file" | cut -d' ' -f1)"
done >"$top/$list"
printf 'Suite: stable\\nComponents: main\\nArchitectures: amd64\\nDate: %s\\nSHA256:\\n %s %s %s\\n' \\
    "$(date -Ru)" "$(sha256sum "$top/$list" | cut -d' ' -f1)" "$(stat -c %s "$top/$list")" "$list" >"$top/Release"
export GNUPGHOME="$PWD/keys"
gpg --batch -q --passphrase '' --quick-gen-key plant@plant.example ed25519 sign never
gpg --batch -q --clearsign -o "$top/InRelease" "$top/Release"
gpg --armor --export >plant.asc
gpgconf --kill gpg-agent
gpg --with-colons --list-keys | sed -n 's/^fpr:*\\([0-9A-F]*\\):/\\1/p'
"""


@pytest.mark.slow
def test_a_layer_of_a_recipe_of_ones_own(tmp_path):
    """A signed folder of packages, at a stated version, and a package file become a layer."""
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    made = processes.run(["sh", "-c", _ARCHIVE], what="make an archive", cwd=tmp_path)
    text = SMALL + OWN.format(folder=tmp_path, fingerprint=made.stdout.split()[-1])
    (tmp_path / "own.toml").write_text(text)
    plan = building.plan_of(recipe.load(str(tmp_path / "own.toml")))
    store = cache.Store(tmp_path / "store")
    for step in plan.steps[:2]:
        entry = building.make_step(plan, step, store)
    with (entry.path / "root.tar").open("rb") as stream:
        found = {one.name: one.version for one in scanning.packages(trees.TarTree(stream))}
    assert found.items() >= {("plant-agent", "2.4.1"), ("vendor-driver", "1.0")}


def _elsewhere(tmp_path, program, *arguments):
    """Run Python code in other circumstances and return its last word.

    Root runs it as a user without rights who has another home and account files; a user runs it as
    root of a user namespace.
    """
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    mke2fs = tools.ensure(["mke2fs"])["mke2fs"]
    processes.run(["cp", "-a", mke2fs.parents[1], tmp_path / "tools"], what="share mke2fs")
    # The interpreter and the checkout may lie where only their owner can look.
    interpreter = Path(sys.executable).resolve().relative_to(sys.base_prefix)
    places = {
        "python": Path(sys.base_prefix),
        "checkout": ROOT,
        "packages": Path(next(path for path in sys.path if path.endswith("site-packages"))),
    }
    for name in places:
        (tmp_path / name).mkdir()
    inner = [
        *("env", "-i", f"HOME={home}", f"KVEDGE_CACHE={home}/cache"),
        f"PATH={tmp_path}/tools/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        f"PYTHONPATH={tmp_path}/checkout:{tmp_path}/packages",
        f"LD_LIBRARY_PATH={tmp_path}/python/lib",
        *("PYTHONDONTWRITEBYTECODE=1", tmp_path / "python" / interpreter),
        *("-P", "-c", program, *arguments),
    ]
    binds = "".join(f'mount --bind "{path}" "$1/{name}"; ' for name, path in places.items())
    if os.geteuid() != 0:
        outer = ["unshare", "--user", "--map-root-user", "--map-auto", "--mount"]
    else:
        outer = ["unshare", "--mount"]
        inner = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", *inner]
        # A copy of the whole folder: a single file's mount would go when somebody replaces it.
        processes.run(["cp", "-a", "/etc", tmp_path / "etc"], what="copy /etc")
        with (tmp_path / "etc/passwd").open("a") as file:
            file.write("builder:x:4242:4242::/nonexistent:/bin/sh\n")
        for name in ("subuid", "subgid"):
            (tmp_path / "etc" / name).write_text("builder:300000:65536\n")
        binds += 'mount --bind "$1/etc" /etc; '
        temporary = Path(tempfile.gettempdir())
        for folder in (tmp_path, *tmp_path.parents):
            if folder.is_relative_to(temporary) and folder != temporary:
                folder.chmod(0o755)
        os.chown(home, 4242, 4242)
    script = f'{binds}cd "$1/home"; shift; exec "$@"'
    argv = [*outer, "sh", "-euc", script, "sh", tmp_path, *inner]
    return processes.run(argv, what="build as somebody else").stdout.split()[-1]


def test_root_and_user_make_the_same_layer(base, tmp_path):
    """Packages give one tree: here, and as somebody else in another folder."""
    program = (
        "import hashlib; from images import building;"
        f"entry = building.build_base({BASE!r}); print(entry.files['root.tar']['sha256'])"
    )
    assert _elsewhere(tmp_path, program) == base[1].files["root.tar"]["sha256"]


def test_root_and_user_make_the_same_disk(tmp_path):
    """One tree gives one image digest: here, and as somebody else in another folder."""
    mine = images.build(DISK)
    plan, step, store = _primed(tmp_path, "disk")
    tree = tmp_path / "tree"
    shutil.copytree(store.root / "steps" / step.below, tree)
    program = (
        "import shutil, sys; import images; from images import cache;"
        "store = cache.default_store();"
        "shutil.copytree(sys.argv[1], store.root / 'steps' / sys.argv[2]);"
        f"print(images.build({DISK!r}).digest)"
    )
    assert plan.key == mine.key
    assert _elsewhere(tmp_path, program, tree, step.below) == mine.digest


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_root_and_user_build_the_same_image(tmp_path):
    """The whole image has one digest, from the packages on."""
    mine = building.build(DISK, store=cache.Store(tmp_path / "mine"))
    program = f"import images; print(images.build({DISK!r}).digest)"
    assert _elsewhere(tmp_path, program) == mine.digest
