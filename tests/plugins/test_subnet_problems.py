"""The filter that judges subnets."""

from __future__ import annotations

from plugins.filter.subnet_problems import subnet_problems


def test_subnets_that_overlap_are_named() -> None:
    given = {"a": "172.30.0.0/16", "b": "172.30.1.0/24", "c": "", "d": "172.31.0.0/24"}
    assert subnet_problems(given) == ["b 172.30.1.0/24 and a 172.30.0.0/16 overlap"]
