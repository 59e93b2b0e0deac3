"""Objectives with a discriminator that is trained beside the program."""
