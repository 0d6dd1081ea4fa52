"""Container images without a container engine: a shared Python base and one layer of our own.

`temperature-sensor` is the sample module that runs in edge VMs; `kvedge` is this project itself,
for the connector on a real cluster.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.resources
import io
import json
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

import kvedge
from images import building, cache, oci, recipe, roottree
from kvedge import errors, processes
from kvedge.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvedge.progress import Progress

__all__ = ["MODULES", "build_kvedge_image", "build_module", "kvedge_image_key", "module_key"]

MODULES = ("temperature-sensor",)
_BASE_RECIPE = "python-container"
_WAY = 3
_PYTHON = (3, 11)
"""Of the base layer; compiled dependencies and byte code must be made for it."""
_SITE = "usr/local/lib/python3.11/dist-packages"
_USER = 65532
"""The unprivileged user, as distroless images number it."""
_ACCOUNTS = {
    "etc/passwd": f"root:x:0:0:root:/root:/bin/sh\nkvedge:x:{_USER}:{_USER}::/home:/bin/sh\n",
    "etc/group": f"root:x:0:\nkvedge:x:{_USER}:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
_DROPPED = ("etc/apt/", "var/lib/apt/", "var/cache/", "var/log/", "dev/")
_SKIPPED_FOLDERS = frozenset({"__pycache__", "test", "tests"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    name: str
    key: str
    """Digest of everything that goes in."""
    fill: Callable[[IO[bytes]], None]
    """Writes the layer's tar."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Image:
    name: str
    layers: tuple[_Layer, ...]
    """Above the base."""
    config: oci.ContainerConfig


def module_key(name: str) -> str:
    """Return the key that a module's image has or will have."""
    return _key(_module(name))


def build_module(name: str, *, progress: Progress = silent) -> building.BuiltImage:
    """Build a sample module's container image, or find it built.

    Raises:
        SpecError: there is no such module.
    """
    return _build(_module(name), progress)


def kvedge_image_key() -> str:
    """Return the key that kvedge's own image has or will have."""
    return _key(_kvedge())


def build_kvedge_image(*, progress: Progress = silent) -> building.BuiltImage:
    """Build the container image of the running kvedge, or find it built.

    Its dependencies are those installed here, so this Python must be the base layer's.
    """
    return _build(_kvedge(), progress)


def _module(name: str) -> _Image:
    if name not in MODULES:
        raise errors.SpecError(
            "module image",
            [errors.Problem(path=name, message=f"no such module; there are {', '.join(MODULES)}")],
        )
    from kvedge.edgesim import vendoring

    program = importlib.resources.files("images") / "modules" / name.replace("-", "_") / "main.py"
    files = {
        "app/main.py": program.read_bytes(),
        "app/vendor.zip": _zipped(dict(vendoring.vendored_files())),
    }
    return _Image(
        name=name,
        layers=(_files_layer(name, files),),
        config=oci.ContainerConfig(
            entrypoint=("/usr/bin/python3", "-IS", "/app/main.py"),
            env=("PATH=/usr/local/bin:/usr/bin:/bin", "PYTHONUNBUFFERED=1", "LANG=C.UTF-8"),
            user=str(_USER),
            working_dir="/app",
        ),
    )


def _kvedge() -> _Image:
    if sys.version_info[:2] != _PYTHON or sys.platform != "linux":
        raise errors.ToolMissing(
            "python3.11",
            "kvedge's own image takes its dependencies from a Python 3.11 environment, "
            f"this is {sys.version_info.major}.{sys.version_info.minor}",
            hint="install kvedge into a Python 3.11 environment and build the image there",
        )
    files = {
        f"{_SITE}/{path}": data
        for package in ("kvedge", "cloudinit", "images")
        for path, data in _package_files(package)
    }
    files["usr/local/bin/kvedge"] = (
        b"#!/usr/bin/python3\nimport sys\nfrom kvedge.cli import main\n"
        b"sys.argv[0] = 'kvedge'\nsys.exit(main())\n"
    )
    return _Image(
        name="kvedge",
        layers=(_dependencies_layer(), _files_layer("kvedge", files)),
        config=oci.ContainerConfig(
            entrypoint=("kvedge",),
            env=(
                "PATH=/usr/local/bin:/usr/bin:/bin",
                "PYTHONUNBUFFERED=1",
                "LANG=C.UTF-8",
                "HOME=/tmp",
            ),
            user=str(_USER),
            working_dir="/",
            labels=(("org.opencontainers.image.version", kvedge.__version__),),
        ),
    )


def _dependencies_layer() -> _Layer:
    """Return kvedge's core dependencies as this environment has them.

    Each distribution's RECORD holds the digests of its files, so the key needs no reading of them.
    """
    found = {name: importlib.metadata.distribution(name) for name in _closure("kvedge")}
    found.pop("kvedge")
    text = json.dumps({name: one.read_text("RECORD") for name, one in sorted(found.items())})

    def fill(sink: IO[bytes]) -> None:
        files = {
            f"{_SITE}/{path}": data
            for name in sorted(found)
            for path, data in _distribution_files(found[name])
        }
        _write_files(files, sink)

    return _Layer(name="dependencies", key=_digest(text.encode()), fill=fill)


def _distribution_files(
    distribution: importlib.metadata.Distribution,
) -> Iterator[tuple[str, bytes]]:
    for entry in sorted(distribution.files or (), key=str):
        path = PurePosixPath(str(entry))
        if path.is_absolute() or ".." in path.parts or path.suffix == ".pyc":
            continue
        if _SKIPPED_FOLDERS & set(path.parts) or path.name in {"RECORD", "direct_url.json"}:
            continue
        source = Path(str(distribution.locate_file(entry)))
        if source.is_file():
            yield str(path), source.read_bytes()


def _closure(name: str) -> set[str]:
    """Return a distribution and all that it needs, as far as it is installed."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        try:
            needs = importlib.metadata.requires(current) or ()
        except importlib.metadata.PackageNotFoundError:
            # Markers are not evaluated: what is for another platform is not installed.
            continue
        found.add(current)
        for text in needs:
            wanted, _, marker = text.partition(";")
            child = re.match(r"[A-Za-z0-9._-]+", wanted)
            if child and "extra" not in marker:
                plain = re.sub(r"[-_.]+", "-", child[0]).lower()
                if plain not in found:
                    waiting.append(plain)
    return found


def _package_files(package: str) -> Iterator[tuple[str, bytes]]:
    top = Path(str(importlib.resources.files(package)))
    for path in sorted(top.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
            yield f"{package}/{path.relative_to(top)}", path.read_bytes()


def _files_layer(name: str, files: dict[str, bytes]) -> _Layer:
    text = json.dumps({path: _digest(data) for path, data in sorted(files.items())})
    return _Layer(
        name=name, key=_digest(text.encode()), fill=functools.partial(_write_files, files)
    )


def _base_layer(progress: Progress, store: cache.Store) -> _Layer:
    """Return the shared layer; it is built only when it is not there yet."""
    base = recipe.load(_BASE_RECIPE)

    def fill(sink: IO[bytes]) -> None:
        entry = building.build_base(_BASE_RECIPE, progress=progress, store=store)
        members = [roottree.file(path, text) for path, text in _ACCOUNTS.items()]
        with (entry.path / "root.tar").open("rb") as stream:
            roottree.merge(stream, sink, members=members, amend={}, epoch=base.epoch, drop=_DROPPED)

    return _Layer(name="python", key=building.plan_of(base).steps[0].key, fill=fill)


def _layer_key(layer: _Layer) -> str:
    return f"blob-{_digest(f'{_WAY} {layer.key}'.encode())[:32]}"


def _key(image: _Image) -> str:
    base = building.plan_of(recipe.load(_BASE_RECIPE)).steps[0].key
    text = {
        "way": _WAY,
        "layers": [base, *(layer.key for layer in image.layers)],
        "config": dataclasses.asdict(image.config),
    }
    return f"container-{_digest(json.dumps(text, sort_keys=True).encode())[:32]}"


def _build(image: _Image, progress: Progress) -> building.BuiltImage:
    store = cache.default_store()
    key = _key(image)
    entry = store.find(key)
    if entry is None:
        task = f"image {image.name}"
        layers = [_base_layer(progress, store), *image.layers]
        made = []
        for at, layer in enumerate(layers):
            progress(task, at, len(layers) + 1, layer.name)
            made.append(store.make(_layer_key(layer), functools.partial(_write_layer, layer)))
        progress(task, len(layers), len(layers) + 1, "layout")
        entry = store.make(key, functools.partial(_write, image, key, made))
        progress(task, len(layers) + 1, len(layers) + 1)
    layout = oci.read_layout(entry.path)
    return building.BuiltImage(
        name=image.name, key=key, digest=layout.digest, layout=layout.path, size=layout.size
    )


def _write_layer(layer: _Layer, folder: Path) -> dict[str, Any]:
    return {"layer": layer.name, "blob": oci.write_layer(folder, layer.fill).facts()}


def _write(image: _Image, key: str, layers: list[cache.Entry], folder: Path) -> dict[str, Any]:
    base = recipe.load(_BASE_RECIPE)
    layout = oci.write_image(
        folder,
        [(oci.Blob(**entry.facts["blob"]), entry.path) for entry in layers],
        arch=base.arch,
        epoch=base.epoch,
        config=image.config,
        labels={"io.kvedge.key": key, "org.opencontainers.image.title": image.name},
    )
    own = sum(blob["size"] for blob in layout.manifest["layers"][1:])
    return {"digest": layout.digest, "name": image.name, "own_bytes": own}


def _write_files(files: dict[str, bytes], sink: IO[bytes]) -> None:
    """Write a layer of files and of byte code, which saves emulated VMs seconds."""
    epoch = recipe.load(_BASE_RECIPE).epoch
    members = [
        roottree.file(path, data, mode=0o755 if data.startswith(b"#!") else 0o644)
        for path, data in {**files, **_byte_code(files)}.items()
    ]
    roottree.merge(io.BytesIO(), sink, members=members, amend={}, epoch=epoch)


def _byte_code(files: dict[str, bytes], *options: str) -> dict[str, bytes]:
    """Return byte code by path, as far as a Python of the base layer's version is here.

    Args:
        options: of compileall; `-b` puts the code beside its source, where archives have it.
    """
    python = sys.executable if sys.version_info[:2] == _PYTHON else shutil.which("python3.11")
    if not python:
        return {}
    with tempfile.TemporaryDirectory(prefix="kvedge-pyc-") as name:
        top = Path(name)
        for path, data in files.items():
            if path.endswith(".py"):
                (top / path).parent.mkdir(parents=True, exist_ok=True)
                (top / path).write_bytes(data)
        processes.run(
            [python, "-I", "-m", "compileall", "-q", "-f", "--invalidation-mode",
             "unchecked-hash", *options, "-s", top, "-p", "/", top],
            what="compile Python files", check=False,
        )  # fmt: skip
        return {
            str(path.relative_to(top)): path.read_bytes() for path in sorted(top.rglob("*.pyc"))
        }


def _zipped(files: dict[str, bytes]) -> bytes:
    """Return an archive that Python imports from, of byte code where it can be made.

    Engines in emulated machines unpack one file quicker than hundreds. The layer is compressed.
    """
    code = _byte_code(files, "-b")
    kept = {path: data for path, data in files.items() if f"{path}c" not in code}
    # Python finds packages without an __init__ by the entries of their folders.
    folders = {f"{folder}/": b"" for path in files for folder in PurePosixPath(path).parents[:-1]}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, data in sorted({**kept, **code, **folders}.items()):
            archive.writestr(zipfile.ZipInfo(path), data)
    return out.getvalue()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
