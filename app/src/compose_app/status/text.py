"""Values as people read them; what is not known is a dash."""

from __future__ import annotations

from datetime import datetime

UNKNOWN = "\N{EM DASH}"
_THIN = "\N{NO-BREAK SPACE}"


def number(value: float | None) -> str:
    """Three digits that count, and all of those before the point."""
    if value is None:
        return UNKNOWN
    for bound, digits in ((99.95, 0), (9.995, 1), (0.9995, 2)):
        if abs(value) >= bound:
            return f"{value:,.{digits}f}"
    return f"{value:.2g}" if abs(value) >= 0.0001 else "0"


def _with_unit(value: float, unit: str) -> str:
    return f"{number(value)}{_THIN}{unit}"


def rate(value: float | None) -> str:
    """Requests per second."""
    return UNKNOWN if value is None else f"{number(value)}/s"


def ratio(value: float | None) -> str:
    """A share, in per cent."""
    return UNKNOWN if value is None else _with_unit(value * 100, "%")


def seconds(value: float | None) -> str:
    """A duration of a request."""
    if value is None:
        return UNKNOWN
    return _with_unit(value, "s") if value >= 0.9995 else _with_unit(value * 1000, "ms")


def size(value: float | None) -> str:
    """Bytes."""
    if value is None:
        return UNKNOWN
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1023.5:
            return _with_unit(value, unit)
        value /= 1024
    return _with_unit(value, "TiB")


def span(value: float | None) -> str:
    """A time that has passed or is left, in its largest unit."""
    if value is None:
        return UNKNOWN
    for unit, length in (("day", 86400), ("h", 3600), ("min", 60)):
        if abs(value) >= 2 * length:
            plural = "s" if unit == "day" else ""
            return f"{int(value / length)}{_THIN}{unit}{plural}"
    return f"{int(value)}{_THIN}s"


def moment(value: datetime | None) -> str:
    """A time of day, in UTC."""
    return UNKNOWN if value is None else f"{value:%Y-%m-%d %H:%M} UTC"


def labels(value: dict[str, str]) -> str:
    """Labels of a series."""
    return ", ".join(f"{name} {text}" for name, text in value.items())
