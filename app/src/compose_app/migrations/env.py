"""Alembic's environment: the connection and its transaction belong to `compose_app.migrate`."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
with context.begin_transaction():
    context.run_migrations()
