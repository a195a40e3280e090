"""One switch from slot to slot: watched from outside, and taken back when it serves worse."""

from __future__ import annotations

import http.client
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.bake import Answers, read, worse
from ansible.module_utils.gateway import GatewayLog
from ansible.module_utils.slots import active, point
from ansible.module_utils.traffic import Address, Prober, Receipt, SocketConnection, ask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BACK_SECONDS = 1.0
LOOK_EVERY = 0.25
ANSWER_SECONDS = 10


class SwitchError(Exception):
    """Why the target slot does not serve."""


def failed_probe(failures: list[str]) -> str:
    """What a failed probe says against a slot; empty when none failed."""
    return f"a probe of the public address failed: {failures[0]}" if failures else ""


class Switch:
    """One switch, from the first look at the target slot to the verdict."""

    def __init__(self, params: Mapping[str, Any], warn: Callable[[str], None]) -> None:
        """Take what the module `switch_slot` takes."""
        self.params = params
        self.warn = warn
        self.path = Path(params["path"])
        self.target: str = params["target"]
        self.before = active(self.path)
        self.switched = 0.0
        self.gateway = GatewayLog(params["gateway_log"])
        self.receipt: dict[str, Any] = {}

    def run(self) -> None:
        """Let the target slot serve.

        Raises:
            SwitchError: it does not, and the slot that served before does again.
        """
        try:
            self.smoke_test()
            if self.before is None:
                self.point(self.target)
            else:
                self.watched_switch(self.before)
        finally:
            self.gateway.stop()

    def facts(self) -> dict[str, Any]:
        """Which slot serves and which did, and the receipt where there is one."""
        return {
            "active": active(self.path),
            "previous": self.before,
            **({"receipt": self.receipt} if self.receipt else {}),
        }

    def smoke_test(self) -> None:
        sockets = self.sockets(self.target)
        if not sockets:
            raise SwitchError(
                f"Slot {self.target} listens on no socket in {self.path / self.target}."
            )
        for socket in sockets:
            try:
                status, body = self.ask(socket, "/health")
            except (OSError, http.client.HTTPException) as error:
                raise SwitchError(
                    f"Slot {self.target} does not answer on {socket}: {error}."
                ) from error
            if status != http.HTTPStatus.OK:
                text = body[:300].decode(errors="replace")
                raise SwitchError(
                    f"Slot {self.target} answers {status} to /health on {socket}: {text}"
                )

    def watched_switch(self, before: str) -> None:
        """Switch under probes; go back when the target slot serves worse."""
        self.gateway.start()
        prober = self.prober()
        time.sleep(self.params["before_seconds"])
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
            raise SwitchError(
                f"Slot {self.target} serves worse than {before} did: {reason}. {before} serves "
                f"again since {self.receipt['returned_after_seconds']} s after the switch."
            )

    def prober(self) -> Prober:
        prober = Prober(Address(**self.params["public"]), self.params["pace"])
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
        until = began + self.params["watch_seconds"]
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
        until = time.monotonic() + self.params["drain_seconds"]
        for socket in self.sockets(slot):
            try:
                self.ask(socket, "/health/live", max(1.0, until - time.monotonic()))
            except ConnectionRefusedError:
                continue  # nothing listens there, so nothing waits
            except (OSError, http.client.HTTPException) as error:
                self.warn(f"Requests may still have been waiting at {socket}: {error}.")

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
            raise SwitchError(
                f"Cannot point {self.path}/active at {slot}: {error.strerror}."
            ) from error
