"""Secrets are not printed by accident."""

from hypothesis import given
from hypothesis import strategies as st

from kvedge import redact


@given(st.text(min_size=4))
def test_secret_never_shows_its_text(text):
    """Neither str, repr nor formatting shows what is inside."""
    secret = redact.Secret(f"<<{text}>>")
    assert f"<<{text}>>" not in f"{secret} {secret!r} {[secret]}"
    assert secret.reveal() == f"<<{text}>>"


def test_redacted_masks_keys_signatures_and_private_keys():
    """The three forms in which keys travel are masked; the rest of the text stays."""
    text = (
        "HostName=h;SharedAccessKey=abc=; x SharedAccessSignature sr=h&sig=zz "
        "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----"
    )
    shown = redact.redacted(text)
    assert "abc" not in shown
    assert "zz" not in shown
    assert "AAAA" not in shown
    assert shown.startswith("HostName=h;SharedAccessKey=***")
