#!/usr/bin/python
"""Let another slot serve, watched from outside, and go back when it serves worse."""

from __future__ import annotations

DOCUMENTATION = r"""
module: switch_slot
short_description: Let another slot serve, watched from outside, and go back when it serves worse
description:
  - Asks the target slot on its own sockets first, and changes nothing when it does not answer.
  - Probes the public address from before the switch to the end of the watch. The switch is a single
    C(rename(2)) of the link C(active). When most of the answers before the switch are failures, it
    is not watched.
  - For O(watch_seconds) it compares what both slots' own metrics say. A failed probe, errors or a
    slowness that the slot before did not show make it point the link back at once and fail.
  - At the end the slot before holds no request that it has not begun to answer. It asks that slot
    on its own sockets, behind whatever waits there; when it is answered, so is what came before.
options:
  path:
    description: Directory that holds the slots.
    type: path
    required: true
  target:
    description: Slot that shall serve.
    type: str
    required: true
  public:
    description: The public address. Its certificate is not checked. It is the slot that is judged.
    type: dict
    required: true
    suboptions:
      host:
        description: Where to connect.
        type: str
        required: true
      port:
        description: The port.
        type: int
        required: true
      name:
        description: Server name to ask for.
        type: str
        required: true
      path:
        description: What to ask for. It must not count against a client's rate limit.
        type: str
        default: /health
  pace:
    description: Probes per second.
    type: float
    default: 20
  before_seconds:
    description: How long the public address is probed before the switch.
    type: float
    default: 1
  watch_seconds:
    description: How long the slot is watched after the switch.
    type: float
    default: 5
  gateway_log:
    description:
      - A command that prints the access log of the proxy in front of the slots, of a while ago and
        on. Each line is a JSON object with C(time) (ISO 8601), nginx's C(upstream_status) and
        C(uri).
      - The slots are compared by the 502 and 504 in it, too. They are what is noted when a process
        dies, and no process counts them.
    type: list
    elements: str
    default: []
  drain_seconds:
    description: How long the slot before may take until it has begun whatever it was sent.
    type: float
    default: 60
attributes:
  check_mode:
    support: full
author: compose-stack maintainers
"""

EXAMPLES = r"""
- name: Serve from green
  switch_slot:
    path: /opt/compose-stack/run/sockets
    target: green
    public: {host: 127.0.0.1, port: 443, name: localhost}
    watch_seconds: 30
"""

RETURN = r"""
active:
  description: Slot that serves at the end, or null.
  returned: always
  type: str
previous:
  description: Slot that served before, or null.
  returned: always
  type: str
receipt:
  description:
    - Probes sent, failed and their times in milliseconds, before the switch and after it, what the
      target slot has answered in the meantime, and how long the parts took in seconds.
  returned: when a slot had served before
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.switching import Switch, SwitchError


def main() -> None:
    """Run the module."""
    public = {
        "host": {"type": "str", "required": True},
        "port": {"type": "int", "required": True},
        "name": {"type": "str", "required": True},
        "path": {"type": "str", "default": "/health"},
    }
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "target": {"type": "str", "required": True},
            "public": {"type": "dict", "required": True, "options": public},
            "pace": {"type": "float", "default": 20},
            "before_seconds": {"type": "float", "default": 1},
            "watch_seconds": {"type": "float", "default": 5},
            "gateway_log": {"type": "list", "elements": "str", "default": []},
            "drain_seconds": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    switch = Switch(module.params, module.warn)
    if switch.before == switch.target:
        module.exit_json(changed=False, **switch.facts())
    facts: dict[str, Any] = {"active": switch.target, "previous": switch.before}
    if not module.check_mode:
        try:
            switch.run()
        except SwitchError as reason:
            module.fail_json(msg=str(reason), **switch.facts())
        facts = switch.facts()
    diff = {
        "before": f"active: {switch.before}\n",
        "after": f"active: {switch.target}\n",
    }
    module.exit_json(changed=True, diff=diff, **facts)


if __name__ == "__main__":
    main()
