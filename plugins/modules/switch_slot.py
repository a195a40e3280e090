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

import http.client
import time
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.bake import Answers, read, worse
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.gateway import GatewayLog
from ansible.module_utils.slots import active, point
from ansible.module_utils.traffic import Address, Prober, Receipt, SocketConnection, ask

BACK_SECONDS = 1.0
LOOK_EVERY = 0.25
ANSWER_SECONDS = 10


def failed_probe(failures: list[str]) -> str:
    """What a failed probe says against a slot; empty when none failed."""
    return f"a probe of the public address failed: {failures[0]}" if failures else ""


class Switch:
    """One switch, from the first look at the target slot to the verdict."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.path = Path(module.params["path"])
        self.target: str = module.params["target"]
        self.before = active(self.path)
        self.switched = 0.0
        self.gateway = GatewayLog(module.params["gateway_log"])
        self.receipt: dict[str, Any] = {}

    def run(self) -> None:
        """Switch, or fail with the reason and the slot that served before serving again."""
        if self.before == self.target:
            self.exit(changed=False)
        if self.module.check_mode:
            self.exit(changed=True)
        self.smoke_test()
        if self.before is None:
            self.point(self.target)
            self.exit(changed=True)
        self.watched_switch(self.before)
        self.exit(changed=True)

    def smoke_test(self) -> None:
        sockets = self.sockets(self.target)
        if not sockets:
            self.fail(f"Slot {self.target} listens on no socket in {self.path / self.target}.")
        for socket in sockets:
            try:
                status, body = self.ask(socket, "/health")
            except (OSError, http.client.HTTPException) as error:
                self.fail(f"Slot {self.target} does not answer on {socket}: {error}.")
            if status != http.HTTPStatus.OK:
                text = body[:300].decode(errors="replace")
                self.fail(f"Slot {self.target} answers {status} to /health on {socket}: {text}")

    def watched_switch(self, before: str) -> None:
        """Switch under probes; go back when the target slot serves worse."""
        self.gateway.start()
        prober = self.prober()
        time.sleep(self.module.params["before_seconds"])
        old, start = self.counted(before), self.counted(self.target)
        if prober.next_phase():
            # What does not serve is no measure, and must not stand in the way of its successor.
            self.keep(("before",), prober.stop())
            self.point(self.target)
            self.drain(before)
            return
        began, self.switched = time.monotonic(), time.time()
        self.point(self.target)
        self.receipt["switch_ms"] = round((time.monotonic() - began) * 1000, 2)
        reason = self.watch(prober, old, start, began)
        if not reason:
            self.drain(before)
        # The answers that are still due are waited for: a probe that hangs has failed, too.
        self.keep(("before", "after"), prober.stop())
        reason = reason or failed_probe(self.receipt["after"]["failures"])
        self.receipt["watched_seconds"] = round(time.monotonic() - began, 1)
        answered = self.counted(self.target) - start
        self.receipt |= {"answered": round(answered.count), "errors": round(answered.errors)}
        if reason:
            self.go_back(before, began)
            self.fail(
                f"Slot {self.target} serves worse than {before} did: {reason}. {before} serves "
                f"again since {self.receipt['returned_after_seconds']} s after the switch."
            )

    def prober(self) -> Prober:
        prober = Prober(Address(**self.module.params["public"]), self.module.params["pace"])
        prober.start()
        return prober

    def keep(self, names: tuple[str, ...], receipts: list[Receipt]) -> None:
        self.receipt |= {
            name: receipt.summary() for name, receipt in zip(names, receipts, strict=False)
        }

    def go_back(self, before: str, began: float) -> None:
        self.point(before)
        self.receipt["returned_after_seconds"] = round(time.monotonic() - began, 1)
        prober = self.prober()
        # What waits for the target slot would be reset when it is stopped.
        self.drain(self.target)
        time.sleep(BACK_SECONDS)
        self.keep(("back",), prober.stop())

    def watch(self, prober: Prober, old: Answers, start: Answers, began: float) -> str:
        """Why the target slot must not go on serving; empty when nothing was found."""
        until = began + self.module.params["watch_seconds"]
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(LOOK_EVERY, left))
            reason: str = failed_probe(prober.failures())
            if reason:
                return reason
            try:
                reason = worse(old, self.answers(self.target) - start)
            except (OSError, http.client.HTTPException) as error:
                return f"its metrics cannot be read: {error}"
            reason = reason or self.broken_off()
            if reason:
                return reason
        return ""

    def broken_off(self) -> str:
        """Whether the proxy has more to answer for now than before the switch, and how much."""
        reason: str = worse(
            self.gateway.answers(before=self.switched), self.gateway.answers(after=self.switched)
        )
        return reason and f"{reason}; so the proxy says, which had no answer of it"

    def drain(self, slot: str) -> None:
        """Wait until whatever was sent to the slot has been begun: sockets are served in order."""
        until = time.monotonic() + self.module.params["drain_seconds"]
        for socket in self.sockets(slot):
            try:
                self.ask(socket, "/health/live", max(1.0, until - time.monotonic()))
            except ConnectionRefusedError:
                continue  # nothing listens there, so nothing waits
            except (OSError, http.client.HTTPException) as error:
                self.module.warn(f"Requests may still have been waiting at {socket}: {error}.")

    def sockets(self, slot: str) -> list[Path]:
        return sorted((self.path / slot).glob("*.sock"))

    def answers(self, slot: str) -> Answers:
        """What all containers of the slot have answered, by their own metrics."""
        found = Answers()
        for socket in self.sockets(slot):
            status, body = self.ask(socket, "/metrics")
            if status != http.HTTPStatus.OK:
                raise http.client.HTTPException(f"HTTP {status}")
            found += read(body.decode())
        return found

    def counted(self, slot: str) -> Answers:
        """What the slot has answered; nothing when it cannot be asked."""
        try:
            return self.answers(slot)
        except (OSError, http.client.HTTPException):
            return Answers()

    def ask(self, socket: Path, path: str, timeout: float = ANSWER_SECONDS) -> tuple[int, bytes]:
        connection = SocketConnection(socket, timeout)
        try:
            answer: tuple[int, bytes] = ask(connection, path, "localhost")
        finally:
            connection.close()
        return answer

    def point(self, slot: str) -> None:
        try:
            point(self.path, slot)
        except OSError as error:
            self.fail(f"Cannot point {self.path}/active at {slot}: {error.strerror}.")

    def exit(self, *, changed: bool) -> NoReturn:
        self.gateway.stop()
        self.module.exit_json(
            changed=changed,
            active=self.target if changed else self.before,
            previous=self.before,
            diff={"before": f"active: {self.before}\n", "after": f"active: {self.target}\n"},
            **({"receipt": self.receipt} if self.receipt else {}),
        )
        raise AssertionError  # exit_json and fail_json do not return

    def fail(self, reason: str) -> NoReturn:
        self.gateway.stop()
        self.module.fail_json(
            msg=reason,
            active=active(self.path),
            previous=self.before,
            **({"receipt": self.receipt} if self.receipt else {}),
        )
        raise AssertionError  # exit_json and fail_json do not return


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
    Switch(module).run()


if __name__ == "__main__":
    main()
