"""Lets modules be imported as Ansible would."""

import ansible.module_utils

from tests.harness import ROOT

ansible.module_utils.__path__.append(str(ROOT / "plugins" / "module_utils"))
