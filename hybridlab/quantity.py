"""Kubernetes quantities: ``500m`` of a CPU, ``1.5Gi`` of memory, read exactly and written the way people write them.

Grammar: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(m|u|n|k|[MGTPE]i?|Ki|[eE][+-]?\d+)?")
_SUFFIX = {
    "n": Decimal(10) ** -9,
    "u": Decimal(10) ** -6,
    "m": Decimal(10) ** -3,
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50,
    "Ei": Decimal(2) ** 60,
}


def parse_quantity(text: str | int | float) -> Decimal:
    """The exact value of a quantity. Raises ValueError for what Kubernetes would not accept."""
    if isinstance(text, bool):
        raise ValueError(f"{text!r} is not a quantity")
    match = _QUANTITY.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"{text!r} is not a quantity (examples: 500m, 2, 1.5Gi, 512Mi)")
    number, suffix = Decimal(match[1]), match[2]
    if not suffix:
        return number
    if suffix in _SUFFIX:
        return number * _SUFFIX[suffix]
    return number.scaleb(int(suffix[1:]))


def millicores(text: str | int | float) -> int:
    """CPU in thousandths of a core, rounded up as Kubernetes does."""
    return int((parse_quantity(text) * 1000).to_integral_value(ROUND_CEILING))


def bytes_of(text: str | int | float) -> int:
    """Memory or storage in bytes, rounded up as Kubernetes does (so ``512m`` is one byte)."""
    return int(parse_quantity(text).to_integral_value(ROUND_CEILING))


def format_millicores(value: int) -> str:
    """``250m`` or ``2``."""
    return str(value // 1000) if value % 1000 == 0 else f"{value}m"


def format_bytes(value: int) -> str:
    """With the largest binary suffix that loses nothing: ``512Mi``, ``1536Mi``, ``1000``."""
    for suffix in ("Ti", "Gi", "Mi", "Ki"):
        unit = int(_SUFFIX[suffix])
        if value and value % unit == 0:
            return f"{value // unit}{suffix}"
    return str(value)
