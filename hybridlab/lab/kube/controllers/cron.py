"""Cron schedules: five fields, ``@hourly`` and the like, and ``@every`` durations; times are UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hybridlab.lab.kube.controllers.objects import duration

_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]


class BadSchedule(ValueError):
    """The text is no cron schedule."""


@dataclass(frozen=True)
class Cron:
    """A parsed schedule; ``every_s`` > 0 stands for ``@every`` and ignores the fields."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_day: bool
    any_weekday: bool
    every_s: float = 0.0

    def after(self, seconds: float) -> float:
        """The first time after a Unix time. Raises BadSchedule where none comes within five years (30 February)."""
        if self.every_s:
            return seconds + self.every_s
        moment = datetime.fromtimestamp(seconds, UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
        last = moment + timedelta(days=5 * 366)
        while moment < last:
            if moment.month not in self.months or not self._day_fits(moment):
                moment = moment.replace(hour=0, minute=0) + timedelta(days=1)
            elif moment.hour not in self.hours:
                moment = moment.replace(minute=0) + timedelta(hours=1)
            elif moment.minute not in self.minutes:
                moment += timedelta(minutes=1)
            else:
                return moment.timestamp()
        raise BadSchedule("the schedule never comes")

    def _day_fits(self, moment: datetime) -> bool:
        day, weekday = moment.day in self.days, moment.isoweekday() % 7 in self.weekdays
        if self.any_day or self.any_weekday:
            return day and weekday
        return day or weekday  # both restricted: either will do


def parse(text: str) -> Cron:
    """Parse a schedule. Raises BadSchedule."""
    text = text.strip()
    if text.startswith("@every "):
        seconds = duration(text.removeprefix("@every "))
        if seconds <= 0:
            raise BadSchedule(f"invalid duration in {text!r}")
        none: frozenset[int] = frozenset()
        return Cron(none, none, none, none, none, True, True, seconds)
    fields = _MACROS.get(text, text).lower().split()
    if len(fields) != 5:
        raise BadSchedule(f"expected exactly 5 fields, found {len(fields)}: {text!r}")
    parsed = [_field(f, low, high, i) for i, (f, (low, high)) in enumerate(zip(fields, _RANGES, strict=True))]
    weekdays = frozenset(day % 7 for day in parsed[4])
    return Cron(parsed[0], parsed[1], parsed[2], parsed[3], weekdays, fields[2][0] in "*?", fields[4][0] in "*?")


def _field(text: str, low: int, high: int, index: int) -> frozenset[int]:
    names = {3: {n: i + 1 for i, n in enumerate(_MONTHS)}, 4: {n: i for i, n in enumerate(_DAYS)}}.get(index, {})

    def number(word: str) -> int:
        value = names.get(word, int(word) if word.isdigit() else -1)
        if not low <= value <= high:
            raise BadSchedule(f"{word!r} is not within {low}–{high}")
        return value

    result: set[int] = set()
    for part in text.split(","):
        span, slash, step = part.partition("/")
        if slash and (not step.isdigit() or int(step) == 0):
            raise BadSchedule(f"bad step in {part!r}")
        if span in ("*", "?"):
            start, end = low, high
        elif "-" in span:
            first, _, second = span.partition("-")
            start, end = number(first), number(second)
        else:
            start = number(span)
            end = high if slash else start
        if start > end:
            raise BadSchedule(f"beginning of range after its end: {part!r}")
        result.update(range(start, end + 1, int(step) if slash else 1))
    return frozenset(result)
