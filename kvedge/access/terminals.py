"""This process's terminal joined to a stream: raw while it lasts, as before afterwards."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["join"]

_BUFFER = 32768


class _Stream(Protocol):
    """A socket or an ssh channel."""

    def fileno(self) -> int: ...
    def recv(self, size: int, /) -> bytes: ...
    def sendall(self, data: bytes, /) -> object: ...


def join(
    stream: _Stream,
    *,
    escape: bytes = b"",
    resize: Callable[[int, int], object] | None = None,
) -> None:
    """Carry bytes between the terminal and a stream until one of them ends.

    Args:
        escape: a key that ends it.
        resize: called with columns and lines when the window changes.
    """
    with contextlib.ExitStack() as stack:
        handle = sys.stdin.fileno()
        stack.enter_context(_raw(handle))
        if resize:
            stack.enter_context(_window(resize))
        while True:
            ready, _, _ = select.select([stream, handle], [], [])
            if stream in ready:
                data = stream.recv(_BUFFER)
                if not data:
                    return
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            if handle in ready:
                typed = os.read(handle, _BUFFER)
                if not typed or (escape and escape in typed):
                    return
                stream.sendall(typed)


@contextlib.contextmanager
def _raw(handle: int):  # noqa: ANN202 - a context without a value
    import termios
    import tty

    if not os.isatty(handle):
        yield
        return
    saved = termios.tcgetattr(handle)
    try:
        tty.setraw(handle)
        yield
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, saved)


@contextlib.contextmanager
def _window(resize: Callable[[int, int], object]):  # noqa: ANN202 - a context without a value
    def told(*_: object) -> None:
        size = shutil.get_terminal_size()
        with contextlib.suppress(OSError):
            resize(size.columns, size.lines)

    old = signal.signal(signal.SIGWINCH, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, old)
