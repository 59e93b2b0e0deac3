"""Loaded for the tests and for the package's doctests alike; what it does is in tests/hygiene.py."""

pytest_plugins = ("tests.hygiene", "pytester")
