"""Transition kernels, one a file."""
