"""What is wrong with subnets before Docker refuses them."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DOCUMENTATION = r"""
name: subnet_problems
short_description: What Docker would find wrong with subnets
description:
  - Says of each value that is neither empty nor an IPv4 network why not, and which of them overlap.
positional: _input
options:
  _input:
    description: Subnets by the name of the variable that sets them.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Refuse what is no network
  ansible.builtin.assert:
    that: subnets | subnet_problems | length == 0
"""

RETURN = r"""
_value:
  description: One sentence without a full stop for each problem.
  type: list
  elements: str
"""


def subnet_problems(subnets: dict[str, str]) -> list[str]:
    problems: list[str] = []
    networks: dict[str, ipaddress.IPv4Network] = {}
    for name, text in subnets.items():
        if not text:
            continue
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        if not isinstance(network, ipaddress.IPv4Network):
            problems.append(f"{name}: {text} is not IPv4")
            continue
        problems += [
            f"{name} {text} and {other} {taken} overlap"
            for other, taken in networks.items()
            if network.overlaps(taken)
        ]
        networks[name] = network
    return problems


class FilterModule:
    def filters(self) -> dict[str, Callable[..., list[str]]]:
        return {"subnet_problems": subnet_problems}
