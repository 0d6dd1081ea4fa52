"""Errors tell the attempt, the finding and the next act."""

import pytest

from kvedge import errors


def test_spec_error_lists_every_problem_with_its_path():
    """All mistakes come at once, each on its line."""
    problems = [
        errors.Problem(path="fleet[0].name", message="'A' is not a DNS label"),
        errors.Problem(path="hub", message="is missing", hint="set KVEDGE_HUB"),
    ]
    error = errors.SpecError("stack 'dev'", problems)
    assert str(error) == (
        "stack 'dev': 2 problems"
        "\n  fleet[0].name: 'A' is not a DNS label"
        "\n  hub: is missing (set KVEDGE_HUB)"
    )
    assert error.exit_code == 2


def test_build_failed_hands_out_the_command_to_paste():
    """The hint is the command line, quoted for a shell."""
    error = errors.BuildFailed("image 'x'", ["/usr/bin/tool", "a b"], exit_code=3, tail="boom")
    assert "'tool' exited 3" in str(error)
    assert "/usr/bin/tool 'a b'" in error.hint


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (404, "NotFound", "get pod: 404 NotFound: gone"),
        (0, "", "get pod: no answer: gone"),
    ],
)
def test_remote_error_names_status_and_reason(status, reason, expected):
    """The server's status, reason and words are kept."""
    error = errors.RemoteError("get pod", status=status, reason=reason, details="gone")
    assert str(error) == expected
