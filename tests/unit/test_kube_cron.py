"""Cron schedules."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from hybridlab.lab.kube.controllers.cron import BadSchedule, parse


def at(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("schedule", "after", "due"),
    [
        ("0 3 * * *", "2026-11-24 02:59:59", "2026-11-24 03:00:00"),
        ("0 3 * * *", "2026-11-24 03:00:00", "2026-11-25 03:00:00"),
        ("*/15 * * * *", "2026-11-24 10:16:30", "2026-11-24 10:30:00"),
        ("5-7,50 * * * *", "2026-11-24 10:07:00", "2026-11-24 10:50:00"),
        ("0 0 1 * *", "2026-11-24 00:00:00", "2026-12-01 00:00:00"),
        ("0 0 29 2 *", "2026-11-24 00:00:00", "2028-02-29 00:00:00"),
        ("0 12 * * mon", "2026-11-24 12:00:00", "2026-11-30 12:00:00"),
        ("0 12 * * 7", "2026-11-24 12:00:00", "2026-11-29 12:00:00"),
        ("0 0 13 * fri", "2026-11-24 00:00:00", "2026-11-27 00:00:00"),  # either will do
        ("0 9 * jan-mar *", "2026-11-24 00:00:00", "2027-01-01 09:00:00"),
        ("10/20 * * * *", "2026-11-24 10:31:00", "2026-11-24 10:50:00"),
        ("@hourly", "2026-11-24 10:00:00", "2026-11-24 11:00:00"),
        ("@weekly", "2026-11-24 10:00:00", "2026-11-29 00:00:00"),
        ("@every 90m", "2026-11-24 10:00:00", "2026-11-24 11:30:00"),
    ],
)
def test_next_time(schedule: str, after: str, due: str) -> None:
    assert parse(schedule).after(at(after)) == at(due)


@pytest.mark.parametrize(
    "schedule",
    ["", "* * * *", "60 * * * *", "* 24 * * *", "*/0 * * * *", "5-1 * * * *", "@never", "@every soon", "x * * * *"],
)
def test_refused(schedule: str) -> None:
    with pytest.raises(BadSchedule):
        parse(schedule)


def test_day_that_never_comes() -> None:
    with pytest.raises(BadSchedule):
        parse("0 0 30 2 *").after(at("2026-11-24 00:00:00"))
