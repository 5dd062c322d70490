"""Importing this puts the folder `runtime` on the path.

This process then finds `prefect_parallelrun_runtime` and `azureml_user` under the same names as a
worker process does, which has that folder on its PYTHONPATH.
"""

import os
import sys

_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "runtime")
if _FOLDER not in sys.path:
    sys.path.append(_FOLDER)
