"""A small world of tools: one Go module with two programs, and a Go that only pretends."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from kvedge.tools.recipes import Asked, Family, GoMain, Tool

if TYPE_CHECKING:
    from pathlib import Path

# Limits: it compiles nothing; `build` writes a script that prints the version, or fails on demand.
_GO = """#!/bin/sh
echo "$*" >> "{calls}"
case $1 in
version) echo "go version go1.26.8 linux/amd64" ;;
list) printf 'fmt\\nexample.test/hello\\n' ;;
build)
  if [ -e "{broken}" ]; then echo "main.go:3:1: syntax error" >&2; exit 1; fi
  echo example.test/hello
  while [ "$1" != -o ]; do shift; done
  printf '#!/bin/sh\\necho hello v1.2.3\\n' > "$2"
  chmod 755 "$2" ;;
esac
"""


@pytest.fixture
def program(tmp_path: Path):
    """Write a program that prints a text, and count its starts in `<name>.calls`."""

    def write(name: str, text: str, folder: str = "bin") -> Path:
        file = tmp_path / folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\necho x >> {file}.calls\necho '{text}'\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        return file

    return write


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder of Go modules."""
    module = tmp_path / "sources" / "greeting"
    module.mkdir(parents=True)
    (module / "go.mod").write_text("module example.test/greeting\n\ngo 1.26\n")
    (module / "go.sum").write_text("example.test/hello v1.2.3 h1:abc=\n")
    return module.parent


@pytest.fixture
def family() -> Family:
    """Two programs of one module."""
    asked = Asked(arguments=("--version",), pattern=r"v([\d.]+)")
    tools = tuple(
        Tool(
            name=name,
            recipe=GoMain(module="greeting", package=f"example.test/{name}"),
            asked=asked,
        )
        for name in ("hello", "goodbye")
    )
    return Family(
        name="greeting", version="1.2.3", at_least=(1, 2), below=(1, 3), tools=tools, mebibytes=1
    )


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the pretending Go on PATH; its calls are in `calls`, and a file `broken` makes it fail."""
    folder = tmp_path / "gobin"
    folder.mkdir()
    file = folder / "go"
    file.write_text(_GO.format(calls=folder / "calls", broken=folder / "broken"))
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("KVEDGE_GO_CACHE", raising=False)
    return folder
