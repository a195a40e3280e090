"""The application of the stack.

Importing this package loads nothing else: `compose-app healthcheck` runs every few seconds and
must not pay for Flask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compose_app.openapi import Api

__version__ = "1.0.0"


def create_app() -> Api:
    """Build the API from the environment.

    Raises:
        compose_app.config.ConfigError: the environment is incomplete or wrong.
    """
    from compose_app.app import build_app
    from compose_app.config import Settings

    return build_app(Settings.from_environ())


def create_query_app() -> Api:
    """Build the query service from the environment.

    Raises:
        compose_app.config.ConfigError: the environment is incomplete or wrong.
    """
    from compose_app.app import build_query_app
    from compose_app.config import DatabaseSettings

    return build_query_app(DatabaseSettings.from_environ())
