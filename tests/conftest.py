"""What every test shares: the installed fastrms, not the checkout that `python -m pytest` is in."""

import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]

# `python -m pytest` puts the working folder first, and there fastrms/ has no compiled extension.
if not list((CHECKOUT / "fastrms").glob("_core.*.so")):
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != CHECKOUT]
