"""Bounds on the evidence, one a file."""
