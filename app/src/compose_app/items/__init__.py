"""Items: rows in PostgreSQL."""
