"""Every alert has a fault that proves it, or a reason why it has none."""

from __future__ import annotations

from tests.prove.faults import EXCEPTIONS, FAULTS
from tests.prove.rules import ALERTS


def test_every_alert_has_a_fault_or_a_reason() -> None:
    """BM-6: a new rule comes with its proof."""
    made = {item.key for fault in FAULTS.values() for item in fault.expected}
    assert made.isdisjoint(EXCEPTIONS)
    assert made | set(EXCEPTIONS) == set(ALERTS)


def test_no_fault_waits_for_itself() -> None:
    """Each waits for faults that there are, and none for one that waits for it."""
    over: set[str] = set()
    while ready := {f.name for f in FAULTS.values() if set(f.after) <= over} - over:
        over |= ready
    assert over == set(FAULTS)
