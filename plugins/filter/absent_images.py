"""Ansible filter: which images a host does not have."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

DOCUMENTATION = r"""
name: absent_images
short_description: Which images a host does not have
description:
  - Returns the references that are not among those the engine lists, in their order.
  - The engine lists Docker Hub's names without the hub's own, and an image that was pulled by
    digest without the tag that was written beside it.
positional: _input, present
options:
  _input:
    description: References as in C(docker pull).
    type: list
    elements: str
    required: true
  present:
    description: Tags and digests that the engine lists, such as RV(docker_facts.images).
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
# -> ['redis:8@sha256:1b...']
missing: "{{ ['nginx:1.28', 'redis:8@sha256:1b...'] | absent_images(['nginx:1.28']) }}"
"""

RETURN = r"""
_value:
  description: References that are absent.
  type: list
  elements: str
"""

HUB = re.compile(r"^(index\.)?docker\.io/(library/)?|^library/")
TAG = re.compile(r":[^/:]+$")


def listed_as(reference: str) -> str:
    """Return a reference as the engine lists it."""
    name, at, digest = HUB.sub("", reference).partition("@")
    if at:
        return f"{TAG.sub('', name)}@{digest}"
    return name if TAG.search(name) else f"{name}:latest"


def absent_images(references: Iterable[str], present: Collection[str]) -> list[str]:
    """Return those references that the engine does not list."""
    there = set(present)
    return [reference for reference in references if listed_as(reference) not in there]


class FilterModule:
    """Makes the filter known to Ansible."""

    def filters(self) -> dict[str, object]:
        return {"absent_images": absent_images}
