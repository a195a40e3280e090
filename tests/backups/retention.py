"""Runs in the backup container: what Barman would remove of ten weeks of backups, day by day.

Prints each backup that the keeper's window needs and Barman's policy would remove.
"""

from __future__ import annotations

import datetime as dt
import sys
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, "/etc/compose-stack/current/bin")

import barman.output  # type: ignore[import-not-found]  # noqa: F401  its modules import each other
import keeper  # type: ignore[import-not-found]
from barman import retention_policies

DAY = dt.timedelta(days=1)
DAYS, SLACK = (int(word) for word in sys.argv[1:])
BEGAN = dt.datetime(2026, 1, 1, 2, tzinfo=dt.UTC)


def taken(day: int, parent: str | None) -> Any:
    began = BEGAN + day * DAY
    return keeper.Backup(
        f"{began:%Y%m%dT%H%M%S}", "DONE", parent, began, began, "0" * 24, verified=True
    )


def as_barman_sees(backup: Any, everything: list[Any]) -> Any:
    children = [item for item in everything if item.parent == backup.id]
    return SimpleNamespace(
        backup_id=backup.id,
        is_incremental=not backup.full,
        parent_backup_id=backup.parent,
        status=backup.status,
        end_time=backup.end,
        has_children=bool(children),
        walk_backups_tree=lambda **_: [as_barman_sees(item, []) for item in children],
    )


found: list[Any] = []
for day in range(70):
    fulls = [item.id for item in found if item.full]
    found.append(taken(day, fulls[-1] if day % 7 else None))
    at = found[-1].began + DAY / 2
    marked = keeper.lasting(found, at, 4, 6) & keeper.archived(found, at, DAYS * DAY)
    server = SimpleNamespace(
        name="main",
        minimum_redundancy=0,
        get_keep_target=lambda name, marked=marked: "standalone" if name in marked else None,
        available_backups={item.id: as_barman_sees(item, found) for item in found},
    )
    policy = retention_policies.RecoveryWindowRetentionPolicy("BASE", DAYS + SLACK, "d", server)
    policy._point_of_recoverability = lambda at=at: at - (DAYS + SLACK) * DAY
    report = policy.report()
    (span,) = keeper.spans(found, [], at, DAYS * DAY)
    for item in span.backups:
        if report[item.id] == "OBSOLETE":
            print(f"{at:%F}: {item.id} is needed and {report[item.id]}")
    for name in marked:
        if not report[name].startswith("KEEP"):
            print(f"{at:%F}: {name} is to be kept and {report[name]}")
    found = [item for item in found if report[item.id] != "OBSOLETE"]
print(f"{len(found)} are left, {sum(item.full for item in found)} of them full")
