"""Tags and labels: what Oracle accepts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hybridlab.lab.oracle.errors import invalid

MAX_FREEFORM_TAGS = 10
_DNS_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9]{0,14}")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


def check_tags(body: Mapping[str, Any]) -> None:
    """Ten free-form tags, keys of 1–100 and values of 0–256 characters; the lab's tenancy has no tag namespaces."""
    tags = body.get("freeformTags", {})
    if len(tags) > MAX_FREEFORM_TAGS:
        raise invalid(f"freeformTags: at most {MAX_FREEFORM_TAGS} tags")
    for key, value in tags.items():
        if not 1 <= len(key) <= 100 or " " in key or "." in key or not isinstance(value, str) or len(value) > 256:
            raise invalid(f"freeformTags: the tag {key!r} is not valid")
    if body.get("definedTags"):
        raise invalid(f"definedTags: tag namespace {next(iter(body['definedTags']))} does not exist")
    name = body.get("displayName")
    if name is not None and not 1 <= len(name) <= 255:
        raise invalid("displayName must have 1 to 255 characters")


def check_dns_label(label: str) -> None:
    if not _DNS_LABEL.fullmatch(label):
        raise invalid("dnsLabel must be 1 to 15 letters and digits and start with a letter")


def check_hostname(label: str) -> None:
    if not _HOSTNAME.fullmatch(label):
        raise invalid(f"hostnameLabel {label} is not a valid host name (RFC 952 and 1123)")
