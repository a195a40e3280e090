"""Proofs deploy to this machine, as the end-to-end tests do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        skip = pytest.mark.skip(reason="deploys to this machine: run as root")
        for item in items:
            if Path(item.path).parent == Path(__file__).parent:
                item.add_marker(skip)
