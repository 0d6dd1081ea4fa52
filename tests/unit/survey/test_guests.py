"""What a console's log says about the secret disk."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvedge.survey import guests


def _line(error):
    report = {"ok": not error, "changed": ["hosts"], "error": error}
    return f"kvedge-apply: {json.dumps(report)}\r\n"


_TEXT = string.printable


@given(st.lists(st.text(_TEXT, max_size=30), min_size=1), st.text(_TEXT.replace("{", "")))
def test_the_last_result_counts(results, noise):
    """Whatever else is printed between, the newest result is told."""
    console = "".join(f"{noise}\r\n{_line(error)}" for error in results) + noise
    assert guests.apply_error(console) == results[-1]


@pytest.mark.parametrize(
    ("console", "told"),
    [
        ("", ""),
        ("Debian GNU/Linux 12 edge-1 ttyS0\r\n\r\nedge-1 login: ", ""),
        (
            _line("iotedge is not installed") + "kvedge-apply: {broken}\r\n",
            "iotedge is not installed",
        ),
        ('kvedge-apply: {"ok": false}\r\n', "failed"),
    ],
)
def test_consoles(console, told):
    """No result is no error, half a line is passed over, and an error without words is one."""
    assert guests.apply_error(console) == told
