"""Training and all that comes after it."""

import sys
from importlib.util import find_spec

if sys.argv[:1] == ["-m"] and find_spec("torch") is None:
    # A command of a checkout, started by a Python that has none of its packages.
    sys.stderr.write(f"error: {sys.executable} has no torch: run `make setup`, then `source .venv/bin/activate`\n")
    sys.exit(2)
