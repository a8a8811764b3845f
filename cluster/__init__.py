"""Serve one inference call, wherever that is best."""
