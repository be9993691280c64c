"""The tested package behind "Preference alignment, measured".

Importing this package is cheap on purpose: torch and everything heavier are imported by the modules that need them.
"""

import os

# The course never reports anything to anybody. Set before any library that would read it is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Threads that wait for work sleep instead of spinning: on a busy machine lessons ran up to five times slower without this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
