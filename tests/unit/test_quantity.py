"""Quantities as Kubernetes reads them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from hybridlab.quantity import bytes_of, format_bytes, format_millicores, millicores, parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", Decimal(1)),
        (2, Decimal(2)),
        (0.5, Decimal("0.5")),
        ("500m", Decimal("0.5")),
        (".5", Decimal("0.5")),
        ("1.5Gi", Decimal(1610612736)),
        ("1G", Decimal(1_000_000_000)),
        ("1k", Decimal(1000)),
        ("1Ki", Decimal(1024)),
        ("2Ei", Decimal(2 * 2**60)),
        ("1E", Decimal(10**18)),
        ("1e3", Decimal(1000)),
        ("1E3", Decimal(1000)),
        ("12e-1", Decimal("1.2")),
        ("100n", Decimal("0.0000001")),
        ("-1Mi", Decimal(-(2**20))),
    ],
)
def test_value(text: str | int | float, value: Decimal) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "m", "1 Gi", "1gi", "1KB", "0x10", "1.2.3", "one", "1K", True])
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("text", "cores"), [("1", 1000), ("250m", 250), ("0.1", 100), ("1u", 1), ("1500u", 2), (2, 2000)]
)
def test_millicores_round_up(text: str | int, cores: int) -> None:
    assert millicores(text) == cores


@pytest.mark.parametrize(
    ("text", "size"), [("512m", 1), ("64Mi", 67108864), ("1.5k", 1500), ("12268056Ki", 12562489344)]
)
def test_bytes(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["512Mi", "1Gi", "1536Mi", "1000", "0", "3Ki", "2Ti"])
def test_bytes_written_read_the_same(text: str) -> None:
    assert format_bytes(bytes_of(text)) == text


@pytest.mark.parametrize("text", ["250m", "2", "0", "1500m"])
def test_millicores_written_read_the_same(text: str) -> None:
    assert format_millicores(millicores(text)) == text
