#!/usr/bin/python
"""Ask a container registry whether it is there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: registry_ping
short_description: Whether a container registry answers in time
description:
  - Asks the registry that serves an image for its API version, and gives up after O(timeout)
    seconds altogether, name resolution included.
  - A demand for a login is an answer. Nothing is pulled.
options:
  reference:
    description: An image reference as C(docker pull) takes it.
    type: str
    required: true
  timeout:
    description: Seconds to wait.
    type: float
    default: 5
attributes:
  check_mode:
    support: full
    description: Reads only.
"""

EXAMPLES = r"""
- name: Ask the registry
  registry_ping:
    reference: docker.io/library/redis:8-alpine
  register: ping
"""

RETURN = r"""
answers:
  description: Whether the registry answered in time.
  type: bool
  returned: always
reason:
  description: What it said, or why it did not.
  type: str
  returned: always
"""

import threading
import urllib.error
import urllib.request

from ansible.module_utils.basic import AnsibleModule

REGISTRY_STATUS = (200, 401)


def registry_url(reference: str) -> str:
    """The address of the API that serves this reference, by the rules of `docker pull`."""
    host, slash, _rest = reference.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host = "docker.io"
    if host in ("docker.io", "index.docker.io"):
        host = "registry-1.docker.io"
    # Docker itself speaks plain HTTP to registries on loopback.
    loopback = host.split(":")[0] == "localhost" or host.startswith("127.")
    return f"{'http' if loopback else 'https'}://{host}/v2/"


def ask(url: str, timeout: float) -> tuple[bool, str]:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:  # noqa: S310 - http(s) only
            status = response.status
    except urllib.error.HTTPError as error:
        status = error.code
    except (OSError, ValueError) as error:
        return False, f"{url}: {getattr(error, 'reason', error)}"
    return status in REGISTRY_STATUS, f"{url}: status {status}"


def ping(url: str, timeout: float) -> tuple[bool, str]:
    """Name resolution knows no timeout, so a thread asks, and is left behind when it is late."""
    answer = [(False, f"{url}: no answer within {timeout:g} s")]

    def work() -> None:
        answer[0] = ask(url, timeout)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout)
    return answer[0]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "reference": {"type": "str", "required": True},
            "timeout": {"type": "float", "default": 5},
        },
        supports_check_mode=True,
    )
    answers, reason = ping(registry_url(module.params["reference"]), module.params["timeout"])
    module.exit_json(changed=False, answers=answers, reason=reason)


if __name__ == "__main__":
    main()
