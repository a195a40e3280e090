#!/usr/bin/python
"""Ansible module: load the host's firewall, on trial where it might lock somebody out."""

from __future__ import annotations

DOCUMENTATION = r"""
module: firewall
short_description: Load the host's firewall, on trial where it might lock somebody out
version_added: "1.0.0"
author: compose-stack
description:
  - Keeps one table of nftables, C(inet compose-stack), and no other. What is live is compared with
    what the rules would be, so a table that somebody has changed or flushed is put right.
  - The rules are loaded into a network namespace of their own first, then in one transaction into
    the host's.
  - With O(trial_seconds) the host itself puts the old rules back after that time, unless the
    trial is confirmed before. The action plugin does so over a new connection. Only confirmed
    rules are kept.
  - Where systemd runs, a unit loads them again at boot, and after nftables' own service has
    flushed them.
options:
  state:
    description: V(absent) removes the table, the unit and the file.
    type: str
    choices: [present, absent]
    default: present
  project:
    description: The stack that the rules are for. V(absent) leaves those of another one.
    type: str
    required: true
  rules:
    description: The file of rules, which replaces the table in one transaction.
    type: str
    default: ''
  unit:
    description: The unit of systemd that loads it.
    type: str
    default: ''
  trial_seconds:
    description: Seconds after which rules that nobody has confirmed are taken back. With a local
      connection there is no trial.
    type: int
    default: 30
  confirm:
    description: The trial to confirm. Set by the action plugin.
    type: str
    default: ''
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Close what is not to be reached from outside
  firewall:
    project: compose-stack
    rules: "{{ lookup('ansible.builtin.template', 'firewall.nft.j2') }}"
    unit: "{{ lookup('ansible.builtin.template', 'firewall.service.j2') }}"
"""

RETURN = r"""
trial:
  description: The trial that waits to be confirmed.
  type: str
  returned: when the rules are on trial
taken_back:
  description: Whether the trial had ended before it was confirmed.
  type: bool
  returned: when a trial was to be confirmed
"""

import contextlib
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.firewall import RULES, TABLE, project_of

UNIT = Path("/etc/systemd/system/compose-stack-firewall.service")
TRIALS = Path("/run/compose-stack-firewall")
REMOVAL = f"table inet {TABLE}\ndelete table inet {TABLE}\n"
# Whoever renames `pending` first decides: the confirmation, or this.
TAKE_BACK = 'sleep "$1"; mv "$2/pending" "$2/over" && "$3" -f "$2/before.nft"; rm -rf "$2"'


class Firewall:
    """Brings the table, its file and its unit to the wanted state."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.check: bool = module.check_mode
        self.nft: str = module.get_bin_path("nft") or ""
        self.systemd = Path("/run/systemd/system").is_dir()
        self.diff: list[dict[str, str]] = []

    def fail(self, cause: str, remedy: str) -> NoReturn:
        self.module.fail_json(msg=f"{cause}\nRemedy: {remedy}")
        raise AssertionError  # fail_json does not return

    def exit(self, *, changed: bool, **result: Any) -> NoReturn:
        self.module.exit_json(changed=changed, diff=self.diff, **result)
        raise AssertionError  # exit_json does not return

    def note(self, name: str, before: str, after: str) -> bool:
        """Keep a difference for --diff; return whether there is one."""
        if before == after:
            return False
        self.diff.append(
            {
                "before": before,
                "after": after,
                "before_header": name if before else "absent",
                "after_header": name if after else "absent",
            }
        )
        return True

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    # What is, and what would be

    def live(self) -> str:
        """The live table as nft lists it; empty without one."""
        if not self.nft:
            return ""
        done = self.run(self.nft, "--stateless", "list", "table", "inet", TABLE)
        if done.returncode and "No such file" not in done.stderr:
            self.fail(
                f"nft cannot read the rules: {done.stderr.strip()}",
                "Let the user that Ansible becomes manage the network (root; in a container, "
                "CAP_NET_ADMIN), or set firewall_enabled to false.",
            )
        return done.stdout

    def listed(self, rules: str) -> subprocess.CompletedProcess[str]:
        """Load rules where they reach nobody, and list them as the live ones are listed."""
        with tempfile.NamedTemporaryFile("w", suffix=".nft", encoding="utf-8") as candidate:
            candidate.write(rules)
            candidate.flush()
            return self.run(
                *("unshare", "--net", "--", "/bin/sh", "-c"),
                '"$1" -f "$2" && "$1" --stateless list table inet "$3"',
                *("sh", self.nft, candidate.name, TABLE),
            )

    def unit_ready(self) -> bool:
        """Whether the unit loads the rules at boot, and stands by for nftables' own service."""
        done = self.run(
            "systemctl", "show", UNIT.name, "--property=UnitFileState,ActiveState,NeedDaemonReload"
        )
        wanted = {"UnitFileState=enabled", "ActiveState=active", "NeedDaemonReload=no"}
        return set(done.stdout.split()) == wanted

    # Steps

    def present(self) -> NoReturn:
        rules, unit = self.params["rules"], self.params["unit"]
        changed = self.note(str(RULES), read(RULES), rules)
        if self.systemd:
            changed = self.note(str(UNIT), read(UNIT), unit) or changed
        if not self.nft:
            if self.check:
                # The package comes with a real run.
                self.exit(changed=True)
            self.fail("There is no nft on the host.", "Install it: apt-get install nftables.")
        listed = self.listed(rules)
        if listed.returncode:
            self.fail(
                f"The rules cannot be loaded: {listed.stderr.strip()}",
                "Correct what it names; or set firewall_enabled to false.",
            )
        live = self.live()
        differs = self.note(f"table inet {TABLE}", live, listed.stdout)
        changed = changed or differs or (self.systemd and not self.unit_ready())
        if self.check or not changed:
            self.exit(changed=changed)
        if differs:
            if self.params["trial_seconds"]:
                self.exit(changed=True, trial=self.begin(live))
            self.load(rules)
        self.keep(rules, unit)
        self.exit(changed=True)

    def load(self, rules: str) -> None:
        done = subprocess.run(
            [self.nft, "-f", "-"], input=rules, capture_output=True, text=True, check=False
        )
        if done.returncode:
            self.fail(
                f"The rules cannot be loaded: {done.stderr.strip()}",
                "Correct what it names. The rules that were in force still are.",
            )

    def begin(self, live: str) -> str:
        """Load the rules when it is certain that they are going to be taken back."""
        token = secrets.token_hex(8)
        trial = TRIALS / token
        trial.mkdir(mode=0o700, parents=True)
        before = REMOVAL + live
        if live and self.listed(before).returncode:
            # Nothing that nft could not load again may stand in the way: better open than closed.
            before = REMOVAL
        (trial / "before.nft").write_text(before, encoding="utf-8")
        (trial / "pending").touch()
        seconds = str(self.params["trial_seconds"])
        command = ["/bin/sh", "-c", TAKE_BACK, "sh", seconds, str(trial), self.nft]
        if self.systemd:
            # In the session it might end with it.
            name = f"--unit=compose-stack-firewall-{token}"
            done = self.run("systemd-run", "--quiet", "--collect", name, "--", *command)
            if done.returncode:
                shutil.rmtree(trial)
                self.fail(
                    f"systemd-run cannot start what would take the rules back: {done.stderr}",
                    "Mend it (systemctl status); nothing was changed.",
                )
        else:
            nothing = subprocess.DEVNULL
            subprocess.Popen(
                command, cwd="/", stdin=nothing, stdout=nothing, stderr=nothing,
                start_new_session=True,
            )  # fmt: skip
        self.load(self.params["rules"])
        return token

    def confirm(self) -> NoReturn:
        trial = TRIALS / self.params["confirm"]
        try:
            (trial / "pending").rename(trial / "confirmed")
        except FileNotFoundError:
            self.exit(changed=False, taken_back=True)
        shutil.rmtree(trial)
        self.keep(self.params["rules"], self.params["unit"])
        self.exit(changed=True, taken_back=False)

    def keep(self, rules: str, unit: str) -> None:
        """Have the rules loaded at boot."""
        RULES.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        replace(RULES, rules)
        if not self.systemd:
            return
        replace(UNIT, unit)
        self.systemctl("daemon-reload")
        self.systemctl("reenable", UNIT.name)
        self.systemctl("restart", UNIT.name)

    def systemctl(self, *argv: str) -> None:
        done = self.run("systemctl", *argv)
        if done.returncode:
            self.fail(
                f"systemctl {' '.join(argv)}: {done.stderr.strip()}",
                f"See journalctl -u {UNIT.name}. The rules are in force until the next boot.",
            )

    def absent(self) -> NoReturn:
        if project_of(read(RULES)) != self.params["project"]:
            self.exit(changed=False)
        live = self.live()
        changed = self.note(f"table inet {TABLE}", live, "")
        changed = self.note(str(RULES), read(RULES), "") or changed
        changed = self.note(str(UNIT), read(UNIT), "") or changed
        if changed and not self.check:
            if UNIT.exists() and self.systemd:
                self.systemctl("disable", "--now", UNIT.name)
            if live:
                self.load(REMOVAL)
            for path in (UNIT, RULES):
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                RULES.parent.rmdir()
            if self.systemd:
                self.systemctl("daemon-reload")
        self.exit(changed=changed)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def replace(path: Path, text: str) -> None:
    """Put a file in place so that who reads it finds the old content or the new one."""
    fresh = path.with_name(f".{path.name}.fresh")
    fresh.write_text(text, encoding="utf-8")
    fresh.chmod(0o644)
    fresh.replace(path)


def main() -> None:
    """Entry point of Ansible."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "project": {"type": "str", "required": True},
            "rules": {"type": "str", "default": ""},
            "unit": {"type": "str", "default": ""},
            "trial_seconds": {"type": "int", "default": 30},
            "confirm": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    firewall = Firewall(module)
    if module.params["confirm"]:
        firewall.confirm()
    elif module.params["state"] == "absent":
        firewall.absent()
    else:
        firewall.present()


if __name__ == "__main__":
    main()
