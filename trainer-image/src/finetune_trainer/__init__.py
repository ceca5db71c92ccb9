"""The trainer: one container image that fetches, prepares, trains, evaluates and serves.

It shares no code with the operator; `docs/contracts.md` holds everything the two agree on.
"""

import logging

__version__ = "0.1.0"

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # else it tells of kernels that are not there, and of each 8-bit product
