"""Potential energies of models and functions, batched over chains."""
