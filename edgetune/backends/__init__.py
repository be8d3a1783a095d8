"""What computes: the operations of training, and the memory that they work in."""

from importlib.util import find_spec

from ..errors import EdgetuneError

if find_spec("._native", __name__) is None:  # Python began in a clone, and found it before the installed package
    raise EdgetuneError("the kernels are not built in this source tree, from which edgetune was imported",
                        "run Python in another folder, where it finds the installed edgetune, or `make dev` here")
