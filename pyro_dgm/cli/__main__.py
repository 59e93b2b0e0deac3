"""``python -m pyro_dgm.cli`` is ``pyro-dgm``."""

from pyro_dgm.cli.main import main

if __name__ == "__main__":
    main()
