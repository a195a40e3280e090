"""Controller side of render_tree: renders every file, then runs the module once."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import importlib
import os
import re
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible import constants
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.parsing.vault import EncryptedString
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template
from jinja2 import TemplateSyntaxError

try:
    from ansible._internal._datatag._tags import Origin
except ImportError:  # private to ansible-core: without it only inline vault strings are recognised
    Origin = None

# Ansible ships a project's module_utils to targets, but does not make them importable here.
_PLUGINS = Path(__file__).resolve().parents[1]
if str(_PLUGINS / "module_utils") not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(str(_PLUGINS / "module_utils"))

trees = importlib.import_module("ansible.module_utils.trees")

PAYLOAD_LIMIT = 64 * 1024 * 1024
PIPELINING_LIMIT = 1024 * 1024
SHARED_TEMPLATES = "files/templates"


class ActionModule(ActionBase):
    """Render a directory of templates and hand it over in one module execution."""

    _supports_check_mode = True
    _supports_diff = True
    TRANSFERS_FILES = False
    _payload_size = 0

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Entry point of Ansible."""
        del tmp
        variables = task_vars or {}
        super().run(None, variables)
        _, params = self.validate_argument_spec(_argument_spec())
        try:
            modes = trees.Modes.of(params["mode"], params["directory_mode"], params["modes"])
            source = self._source(params["src"])
            secrets = [*params["secrets"], *_vaulted(variables)]
            sources = {"": source, **self._gathered(params["gather"])}
            files, origins = self._render(sources, params, modes, variables, secrets)
            tree = trees.plant(files, modes)
            if self._is_live(params, trees.digest(tree)):
                return _unchanged(params["dest"], tree)
            payload = trees.pack(files, origins, secrets)
        except trees.TreeError as error:
            raise AnsibleActionFail(str(error)) from error
        if len(payload) > PAYLOAD_LIMIT:
            raise AnsibleActionFail(
                f"render_tree: {source} makes {len(payload) >> 20} MiB, and one execution carries "
                f"{PAYLOAD_LIMIT >> 20} MiB at most: copy large files apart"
            )
        self._payload_size = len(payload)
        # Paths as they were given: validation has expanded ~ to the controller's home.
        paths = {name: self._task.args.get(name) for name in ("dest", "stage")}
        arguments = {**params, **paths, "secrets": [], "_payload": payload}
        result: dict[str, Any] = self._execute_module(
            module_name="render_tree", module_args=arguments, task_vars=variables
        )
        # At -vvv it would show the arguments, and a secret may stand in a validation command.
        result.pop("invocation", None)
        return result

    def _is_live(self, params: Mapping[str, Any], digest: str) -> bool:
        depends_on_target = params["keep"] or params["owner"] or params["group"]
        return not depends_on_target and params["live"].get(self._task.args.get("dest")) == digest

    def _is_pipelining_enabled(self, module_style: str, wrap_async: bool = False) -> bool:
        """Send a large module as a file: Python takes quadratic time to read one from a pipe."""
        if self._payload_size > PIPELINING_LIMIT:
            return False
        return bool(super()._is_pipelining_enabled(module_style, wrap_async))

    def _source(self, src: str) -> Path:
        try:
            source = Path(self._find_needle("templates", src))
        except AnsibleError as error:
            raise AnsibleActionFail(
                f"render_tree: src {src!r} was not found in the role or beside the playbook: "
                "create the directory or correct src"
            ) from error
        if not source.is_dir():
            raise AnsibleActionFail(
                f"render_tree: src {source} is not a directory: use template for a single file"
            )
        return source

    @staticmethod
    def _gathered(gather: Mapping[str, str]) -> dict[str, Path]:
        """Directories to add, by their path in the tree; one that is not there adds nothing."""
        found = {}
        for name, directory in gather.items():
            if name.startswith("/") or not {"", ".", ".."}.isdisjoint(name.split("/")):
                raise AnsibleActionFail(
                    f"render_tree: gather puts {directory} at {name!r}, which is no path in the "
                    "tree: write one such as rules/redis"
                )
            if Path(directory).is_dir():
                found[name] = Path(directory)
        return found

    def _render(
        self,
        sources: Mapping[str, Path],
        params: Mapping[str, Any],
        modes: Any,
        variables: dict[str, Any],
        secrets: list[str],
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Render top-level directories first, so that top-level files can name their digests."""
        include_path = self._include_path(params["include_path"], variables)
        files: dict[str, Any] = {}
        origins: dict[str, str] = {}
        digests: dict[str, str] | None = None
        found = [
            (relative, path, source)
            for place, source in sources.items()
            for relative, path in _walk(source, place, params["exclude"])
        ]
        for relative, path, home in sorted(found, key=lambda item: ("/" not in item[0], item[0])):
            if "/" not in relative and digests is None:
                digests = trees.digests(trees.plant(files, modes))
            name = relative.removesuffix(".j2")
            if name in files:
                raise AnsibleActionFail(
                    f"render_tree: {path} and {origins[name]} both make {name}: remove one"
                )
            if relative.endswith(".j2"):
                content = self._render_file(path, [home, *include_path], params, variables, digests)
                if params["skip_empty"] and not content.strip():
                    continue
            else:
                content = self._read(path, secrets)
            mode = modes.for_file(name, os.access(path, os.X_OK))
            files[name] = trees.Entry(trees.FILE, mode, content)
            origins[name] = os.path.relpath(path)
        for name in files:
            if any(other.startswith(name + "/") for other in files):
                raise AnsibleActionFail(
                    f"render_tree: {name} is both a file and a directory: rename one"
                )
        return files, origins

    def _render_file(
        self,
        path: Path,
        search_path: list[Path],
        params: Mapping[str, Any],
        variables: dict[str, Any],
        digests: dict[str, str] | None,
    ) -> bytes:
        local = {
            **variables,
            "template_path": str(path),
            "template_fullpath": str(path),
            "ansible_managed": variables.get("ansible_managed", "Ansible managed"),
        }
        if digests is not None:
            local["render_tree_digests"] = digests
        text = trust_as_template(self._loader.get_text_file_contents(str(path)))
        try:
            templar = self._templar.copy_with_new_env(
                searchpath=[str(directory) for directory in [path.parent, *search_path]],
                available_variables=local,
            )
            rendered = templar.template(
                text,
                escape_backslashes=False,
                overrides={
                    "trim_blocks": params["trim_blocks"],
                    "lstrip_blocks": params["lstrip_blocks"],
                },
            )
        except AnsibleError as error:
            where = f"{os.path.relpath(path)}{_line(text, error)}"
            raise AnsibleActionFail(f"render_tree: cannot render {where}: {error}") from error
        if not isinstance(rendered, str):  # a lone expression keeps its type and loses its newline
            plain = "" if rendered is None else str(rendered)
            rendered = f"{plain}\n" if text.endswith("\n") else plain
        return rendered.encode()

    def _read(self, path: Path, secrets: list[str]) -> bytes:
        """Read a file that is no template, decrypting it if it is a vault file."""
        real = Path(self._loader.get_real_file(str(path)))
        content = real.read_bytes()
        if real != path:
            secrets.append(content.decode(errors="replace"))
            self._loader.cleanup_tmp_file(str(real))
        return content

    def _include_path(self, given: list[str] | None, variables: Mapping[str, Any]) -> list[Path]:
        """Directories that templates may import from; those named on purpose must exist."""
        if given is None and "render_tree_include_path" in variables:
            given = self._templar.template(variables["render_tree_include_path"])
        bases = [Path(self._loader.get_basedir())]
        if constants.CONFIG_FILE:
            bases.insert(0, Path(str(constants.CONFIG_FILE)).resolve().parent)
        found = []
        for name in [SHARED_TEMPLATES] if given is None else given:
            candidates = [base / name for base in bases if (base / name).is_dir()]
            if candidates:
                found.append(candidates[0])
            elif given is not None:
                raise AnsibleActionFail(
                    f"render_tree: include_path {name} was not found below "
                    f"{' or '.join(map(str, bases))}: correct it"
                )
        return found


def _unchanged(dest: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """What the module would answer if it found this tree live."""
    digest = trees.digest(tree)
    return {
        "changed": False,
        "digest": digest,
        "digests": trees.digests(tree),
        "changed_files": [],
        "tree": f"{dest}/trees/{digest[: trees.NAME_DIGITS]}",
        "validated": False,
    }


def _walk(source: Path, place: str, exclude: list[str]) -> Iterator[tuple[str, Path]]:
    """Every file below source that makes an output, with its path in the tree."""
    for directory, names, files in os.walk(source):
        for name in names:
            if Path(directory, name).is_symlink():
                raise AnsibleActionFail(
                    f"render_tree: {directory}/{name} is a symbolic link to a directory, which "
                    "is not followed: put the files there"
                )
        names[:] = [name for name in names if not name.startswith("_")]
        for name in files:
            path = Path(directory, name)
            relative = Path(place, path.relative_to(source)).as_posix()
            output = relative.removesuffix(".j2")
            if name.startswith("_") or name == ".gitkeep":
                continue
            if any(fnmatch.fnmatchcase(output, pattern) for pattern in exclude):
                continue
            yield relative, path


def _line(text: str, error: AnsibleError) -> str:
    """Where in a template an error comes from, as far as that can be told.

    Jinja knows the line of a syntax error. Ansible reports an undefined value without one, so
    the first expression that names it has to do.
    """
    cause = error.__cause__
    if isinstance(cause, TemplateSyntaxError):
        return (
            f":{cause.lineno}" if cause.filename is None else f" ({cause.filename}:{cause.lineno})"
        )
    for name in reversed(re.findall(r"'(\w+)'", str(error))):
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(rf"{{[{{%].*\b{name}\b", line):
                return f":{number}"
    return ""


@functools.cache
def _argument_spec() -> dict[str, Any]:
    """The module states the parameters, once for both sides."""
    module = runpy.run_path(str(_PLUGINS / "modules" / "render_tree.py"))
    return {
        name: option for name, option in module["ARGUMENT_SPEC"].items() if not name.startswith("_")
    }


@functools.cache
def _is_vault_file(path: str) -> bool:
    try:
        with Path(path).open("rb") as file:
            return file.read(14) == b"$ANSIBLE_VAULT"
    except OSError:
        return False


def _vaulted(value: Any) -> Iterator[str]:
    """The values that come from Ansible Vault, whatever their variables are called."""
    if isinstance(value, EncryptedString):
        # One nobody can decrypt is not in any file either: using it would have failed.
        with contextlib.suppress(AnsibleError):
            yield str(value)
    elif isinstance(value, str):
        origin = Origin.get_tag(value) if Origin else None
        if origin and origin.path and "{{" not in value and _is_vault_file(origin.path):
            yield str(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("hostvars", "vars", "ansible_facts", "groups"):
                yield from _vaulted(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _vaulted(item)
