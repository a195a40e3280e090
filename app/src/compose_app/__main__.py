"""`python -m compose_app COMMAND` is `compose-app COMMAND`."""

import sys

from compose_app.cli import main

sys.exit(main())
