"""The kubelet API's certificate from the cluster's own signer, and a new one in good time.

A CertificateSigningRequest for signer kubernetes.io/kubelet-serving has to be approved: by an
approver of the cluster or by `kubectl certificate approve`. Until then, and when it is refused, the
certificate at hand goes on being shown.
https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import logging
from typing import TYPE_CHECKING

from kvedge import errors
from kvedge.node.serving import load_pair, signing_request

if TYPE_CHECKING:
    import ssl

    from kvedge.kube import Client

__all__ = ["keep_certificate"]

_log = logging.getLogger(__name__)
_PATH = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
_SIGNER = "kubernetes.io/kubelet-serving"
_RETRY_SECONDS = 60.0
_APPROVAL_SECONDS = 900.0
"""After that a request is made anew; the cluster drops pending ones after a day."""
_SHARE = 0.8
"""A certificate is replaced after this share of its life, as a kubelet does."""


async def keep_certificate(
    client: Client, context: ssl.SSLContext, name: str, address: str
) -> None:
    """Have a node's serving certificate signed, load it, and renew it for ever."""
    while True:
        try:
            async with asyncio.timeout(_APPROVAL_SECONDS):
                pause = await _renew(client, context, name, address)
        except TimeoutError:
            _log.warning("node %s: nobody has approved its serving certificate", name)
            continue
        except errors.RemoteError as error:
            _log.warning("node %s: serving certificate: %s", name, error)
            pause = _RETRY_SECONDS
        await asyncio.sleep(pause)


async def _renew(client: Client, context: ssl.SSLContext, name: str, address: str) -> float:
    """Return the seconds until the next renewal."""
    request, key = signing_request(name, address)
    made = await client.post(
        _PATH,
        {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"generateName": f"{name}-serving-"},
            "spec": {
                "signerName": _SIGNER,
                "request": base64.b64encode(request).decode(),
                "usages": ["digital signature", "server auth"],
            },
        },
    )
    issued = await _issued(client, made["metadata"]["name"])
    load_pair(context, issued, key)
    left = _left(issued)
    _log.info("node %s: serving certificate signed for %.0f s", name, left)
    return max(left * _SHARE, 1.0)


async def _issued(client: Client, name: str) -> bytes:
    selector = f"metadata.name={name}"
    async with contextlib.aclosing(client.watch(_PATH, fieldSelector=selector)) as watch:
        async for _, found in watch:
            status = (found or {}).get("status") or {}
            for condition in status.get("conditions") or ():
                if condition["type"] in ("Denied", "Failed"):
                    raise errors.RemoteError(
                        f"have {name!r} signed",
                        reason=condition["type"],
                        details=condition.get("message", ""),
                    )
            if status.get("certificate"):
                return base64.b64decode(status["certificate"])
    raise errors.RemoteError(f"have {name!r} signed", reason="WatchEnded")


def _left(certificate: bytes) -> float:
    from cryptography import x509

    until = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    return (until - datetime.datetime.now(datetime.UTC)).total_seconds()
