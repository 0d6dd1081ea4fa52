"""The last lines of a log."""

import pytest

from kvedge.site.host.kubelet import tail


@pytest.mark.parametrize(
    ("content", "lines", "rest"),
    [
        (b"a\nb\nc\n", 1, b"c\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\n", 9, b"a\nb\n"),
        (b"a\nb\n", 0, b""),
        (b"a\nb\n", None, b"a\nb\n"),
        (b"", 3, b""),
        (b"x" * 100_000 + b"\n" + b"y" * 70_000 + b"\n", 1, b"y" * 70_000 + b"\n"),
    ],
)
def test_tail(tmp_path, content, lines, rest):
    """An unfinished last line counts; blocks are joined rightly."""
    file = tmp_path / "log"
    file.write_bytes(content)
    assert content[tail(file, lines) :] == rest
