"""The command line: a thin layer over the library.  ``pyro-dgm --help``, or ``python -m pyro_dgm.cli --help``."""
