"""Checks the signature on every request, as Oracle does.

HTTP Signatures draft 8 in Oracle's dialect: RSA PKCS#1 v1.5 with SHA-256 over the listed headers
(https://docs.oracle.com/en-us/iaas/Content/API/Concepts/signingrequests.htm).
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import hashlib
import hmac
import re
from collections.abc import Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from hybridlab.lab.oracle.errors import not_authenticated

MAX_SKEW_S = 300
_FIELD = re.compile(r'(\w+)="([^"]*)"')
_WITH_BODY = ("POST", "PUT", "PATCH")


def verify(
    method: str, target: str, headers: Mapping[str, str], body: bytes, *, key_id: str, key: rsa.RSAPublicKey, now: float
) -> None:
    """Return if the request is signed by the owner of ``key``; raise 401 NotAuthenticated otherwise.

    ``target`` is the path with its query as sent; ``headers`` is looked up without regard to case.
    """
    scheme, _, rest = headers.get("Authorization", "").partition(" ")
    fields = dict(_FIELD.findall(rest))
    signed = fields.get("headers", "date").lower().split()
    if scheme.lower() != "signature" or fields.get("algorithm") != "rsa-sha256" or fields.get("keyId") != key_id:
        raise not_authenticated()
    needed = {"(request-target)", "host"}
    if method in _WITH_BODY:
        needed |= {"content-length", "content-type", "x-content-sha256"}
    dated = [name for name in ("date", "x-date") if name in signed]
    if not needed <= set(signed) or not dated:
        raise not_authenticated()
    _check_date(headers.get(dated[0], ""), now)
    if method in _WITH_BODY:
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        if not hmac.compare_digest(digest, headers.get("x-content-sha256", "")):
            raise not_authenticated()
    lines = []
    for name in signed:
        value = f"{method.lower()} {target}" if name == "(request-target)" else headers.get(name)
        if value is None:
            raise not_authenticated()
        lines.append(f"{name}: {value}")
    try:
        signature = base64.b64decode(fields.get("signature", ""), validate=True)
        key.verify(signature, "\n".join(lines).encode(), padding.PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, binascii.Error):
        raise not_authenticated() from None


def _check_date(value: str, now: float) -> None:
    try:
        sent = email.utils.parsedate_to_datetime(value).timestamp()
    except ValueError:
        raise not_authenticated() from None
    if abs(sent - now) > MAX_SKEW_S:
        raise not_authenticated()
