"""The database's schema, version by version; Alembic runs the scripts in `versions`."""
