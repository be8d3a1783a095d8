"""Imported before a model of transformers, which would import scikit-learn, and SciPy and pandas with it, for a search
that no test uses: a second more in each process that collects tests.
"""

from transformers.utils import import_utils

import_utils._sklearn_available = False
