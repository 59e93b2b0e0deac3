"""Real data: loaders, each a function that gives a :class:`Dataset`; a cache folder; checksums.

``digits`` needs no download.  The others look in the folder that the environment variable ``PYRO_DGM_DATA`` names
(``~/.cache/pyro_dgm`` by default) and download what is missing.  No loader unpickles anything.
"""

from pyro_dgm.datasets.base import Dataset
from pyro_dgm.datasets.binarization import DynamicBinarization, dynamic_binarization
from pyro_dgm.datasets.binarized_mnist import binarized_mnist
from pyro_dgm.datasets.cache import data_folder
from pyro_dgm.datasets.digits import digits
from pyro_dgm.datasets.idx import read_idx
from pyro_dgm.datasets.mnist import mnist
from pyro_dgm.datasets.registry import list, load

__all__ = [
    "Dataset",
    "DynamicBinarization",
    "binarized_mnist",
    "data_folder",
    "digits",
    "dynamic_binarization",
    "list",
    "load",
    "mnist",
    "read_idx",
]
