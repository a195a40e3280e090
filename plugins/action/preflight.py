"""Ansible action plugin: check every variable, then the host, and report all problems at once."""

from __future__ import annotations

import difflib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ansible.errors import AnsibleError, AnsibleUndefinedVariable
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

if TYPE_CHECKING:
    from collections.abc import Collection

# Variables are read raw and evaluated one by one, so that one broken template hides no other fault.
TARGET = "_preflight_target"
RULES = "_preflight_rules"
RENAMED = "_preflight_renamed"
ALLOWED = "preflight_allowed_variables"

# The role whose fragment includes those of the others.
PROJECT = "stack"

# How alike two names must be: one with a role's prefix, and any other.
SUGGESTION = 0.6
MISSPELT = 0.88


class Roles(NamedTuple):
    """What the roles say about their variables."""

    names: list[str]
    rooms: list[str]
    options: dict[str, dict[str, Any]]
    values: dict[str, Any]


class ActionModule(ActionBase):  # type: ignore[misc, unused-ignore]
    """Runs the checks; the module of the same name looks at the host."""

    _supports_check_mode = True
    _requires_connection = True
    TRANSFERS_FILES = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        roles = self._load_roles(Path(task_vars["role_path"]).parent)
        self._variables = {**roles.values, **task_vars}
        self._variables["preflight_rooms"] = roles.rooms
        self._evaluator = self._templar.copy_with_new_env(available_variables=self._variables)

        names = self._check_names(roles, task_vars)
        raw = dict(self._variables)
        wrong = self._check_values(roles, list(roles.options))
        answer = self._look_at_host(task_vars, wrong)
        # Values may be derived from what was found out.
        self._variables.update({name: raw[name] for name in wrong if name in raw})
        self._variables["preflight_facts"] = answer.get("facts", {})
        wrong = self._check_values(roles, list(wrong))
        problems = [*names, *wrong.values(), *self._check_rules(), *answer["problems"]]
        result["changed"] = False
        if problems:
            # Ansible shows `msg` twice, so the report stands beside it.
            count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
            result.update(
                failed=True,
                msg=f"Preflight found {count}. Nothing was changed.",
                problems=report(problems),
            )
        else:
            result["facts"] = answer["facts"]
        return result

    # Variables

    def _load_roles(self, directory: Path) -> Roles:
        roles = Roles([], [], {}, {})
        for role in sorted(path for path in directory.iterdir() if path.is_dir()):
            roles.names.append(role.name)
            if role.name != PROJECT and any((role / "templates").glob("compose.yml*")):
                roles.rooms.append(role.name)
            specs = self._load(role / "meta" / "argument_specs.yml").get("argument_specs", {})
            roles.options.update((specs.get("main") or {}).get("options") or {})
            for part in ("defaults", "vars"):
                roles.values.update(self._load(role / part / "main.yml"))
        return roles

    def _load(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            return {}
        return self._loader.load_from_file(str(path), trusted_as_template=True) or {}

    def _evaluate(self, value: Any) -> Any:
        return self._evaluator.template(value)

    def _check_names(self, roles: Roles, task_vars: dict[str, Any]) -> list[dict[str, str]]:
        """Name the renamed and the unknown among the variables that were set."""
        renamed = self._evaluate(self._variables.get(RENAMED, {}))
        known = {*roles.options, *roles.values}
        allowed = set(self._evaluate(self._variables.get(ALLOWED, [])))
        prefixes = tuple(f"{role}_" for role in roles.names)
        problems = []
        for name in sorted(set(task_vars) - known - allowed - self._facts(task_vars)):
            where = origin(task_vars[name])
            if name in renamed:
                problems.append(
                    problem(
                        f"{name}{where} was renamed.",
                        f"Call it {renamed[name]}.",
                    )
                )
            elif not name.startswith(("_", "ansible_")):
                mine = name.startswith(prefixes)
                cutoff = SUGGESTION if mine else MISSPELT
                close = difflib.get_close_matches(name, roles.options, 1, cutoff)
                if mine or close:
                    problems.append(
                        problem(
                            f"{name}{where} is not a variable of this project.",
                            (f"Did you mean {close[0]}? " if close else "")
                            + "Correct or remove it; if something of your own uses it, add it to "
                            f"{ALLOWED}.",
                        )
                    )
        return problems

    def _facts(self, task_vars: dict[str, Any]) -> set[str]:
        """Return the names that tasks registered or set before: nobody misspelt those."""
        manager = self._task.get_variable_manager()
        facts = getattr(manager, "_nonpersistent_fact_cache", {})
        return set(facts.get(task_vars["inventory_hostname"], {}))

    def _check_values(self, roles: Roles, names: list[str]) -> dict[str, dict[str, str]]:
        """Return what is wrong, by variable, and go on with the defaults of those variables."""
        problems = {}
        for name in names:
            found = self._check_value(roles, name)
            if found is None:
                continue
            problems[name] = found
            if name in roles.values:
                self._variables[name] = roles.values[name]
        return problems

    def _check_value(self, roles: Roles, name: str) -> dict[str, str] | None:
        spec = roles.options[name]
        if name not in self._variables:
            if not spec.get("required"):
                return None
            return problem(f"{name} is not set.", expectation(name, spec))
        raw = self._variables[name]
        where = origin(raw)
        try:
            value = self._evaluate(raw)
        except AnsibleUndefinedVariable as error:
            if raw is roles.values.get(name):
                # A default may build on what only a later task finds out.
                return None
            return problem(
                f"{name}{where} uses something undefined: {brief(error)}.",
                "Define it, or correct the name.",
            )
        except AnsibleError as error:
            return problem(
                f"{name}{where} cannot be evaluated: {brief(error)}.", "Correct the expression."
            )
        errors = ArgumentSpecValidator({name: spec}).validate({name: value}).error_messages
        if not errors:
            return None
        secret = spec.get("no_log", False)
        detail = "it does not have the right form" if secret else "; ".join(errors).rstrip(".")
        return problem(f"{name}{where}: {detail}.", expectation(name, spec))

    def _check_rules(self) -> list[dict[str, str]]:
        """Check what no single variable's specification can express."""
        problems = []
        for rule in self._variables.get(RULES, []):
            try:
                if self._evaluator.evaluate_conditional(rule["fails_when"]):
                    problems.append(
                        problem(self._evaluate(rule["cause"]), self._evaluate(rule["remedy"]))
                    )
            except AnsibleError:
                # A variable it needs is absent or of the wrong type, which is reported already.
                continue
        return problems

    # The host

    def _look_at_host(self, task_vars: dict[str, Any], wrong: Collection[str]) -> dict[str, Any]:
        arguments: dict[str, Any] = {"controller_time": time.time()}
        for name, raw in self._variables.get(TARGET, {}).items():
            try:
                arguments[name] = self._evaluate(raw)
            except AnsibleError:
                # The variable at fault is reported by the checks of variables.
                continue
        # In the place of a wrong port stands the default, which nobody asked for.
        ports = arguments.get("ports", [])
        arguments["ports"] = [entry for entry in ports if entry["variable"] not in wrong]
        if self._connection.become is None:
            return self._answer(self._execute(arguments, task_vars))
        try:
            answer = self._execute(arguments, task_vars)
            error = str(answer.get("module_stderr") or answer.get("msg") or "")
        except AnsibleError as exception:
            answer, error = {}, brief(exception)
        if "facts" in answer:
            return self._answer(answer)
        # What Ansible says about a failed escalation helps nobody: look again as we are, and say.
        self._connection.become = None
        arguments["become_error"] = " ".join(error.split())
        return self._answer(self._execute(arguments, task_vars))

    def _execute(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(
            module_name="preflight", module_args=dict(arguments), task_vars=task_vars
        )
        return answer

    def _answer(self, answer: dict[str, Any]) -> dict[str, Any]:
        if "facts" in answer:
            return answer
        detail = str(answer.get("module_stderr") or answer.get("msg") or answer).strip()
        cause = f"The host could not be looked at: {detail}"
        remedy = "Correct what it says; -vvv shows more."
        if "interpreter" in detail or ("python" in detail and "not found" in detail):
            cause = f"Python 3 was not found on the host: {detail}"
            remedy = "Install it (apt-get install python3), or set ansible_python_interpreter."
        return {"facts": {}, "problems": [problem(cause, remedy)]}


def problem(cause: str, remedy: str) -> dict[str, str]:
    return {"cause": cause, "remedy": remedy}


def brief(error: Exception) -> str:
    """Return an error's own words, without the excerpts Ansible adds to them."""
    return str(getattr(error, "_original_message", None) or getattr(error, "message", error))


def expectation(name: str, spec: dict[str, Any]) -> str:
    """Say what a variable takes."""
    kind = spec.get("type", "str")
    if spec.get("elements"):
        kind += f" of {spec['elements']}"
    text = f"Set {name} to a value of type {kind}"
    if spec.get("choices"):
        text += f", one of {', '.join(map(str, spec['choices']))}"
    if "default" in spec:
        text += f" (default: {spec['default']!r})"
    description = spec.get("description", "")
    first = description[0] if isinstance(description, list) and description else description
    return f"{text}. {first}".rstrip() if first else f"{text}."


def origin(value: Any) -> str:
    """Return where a value was written, as far as Ansible knows."""
    try:
        from ansible._internal._datatag._tags import Origin
    except ImportError:
        return ""
    tag = Origin.get_tag(value)
    if tag is None:
        return ""
    if not tag.path:
        return f" ({tag.description})" if tag.description else ""
    line = f":{tag.line_num}" if tag.line_num else ""
    path = os.path.relpath(tag.path)
    return f" ({tag.path if path.startswith('..') else path}{line})"


def report(problems: list[dict[str, str]]) -> str:
    """Return every problem in one message."""
    return "\n\n".join(
        f"{number}. {item['cause']}\n   Remedy: {item['remedy']}"
        for number, item in enumerate(problems, 1)
    )
