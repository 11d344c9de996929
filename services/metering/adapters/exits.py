"""How a metering worker leaves when it must not go on: at once, with a code that says why.

By `os._exit`, so that nothing on the way out (faust's last commit, a producer's flush) can
acknowledge or write anything more. Every step is repeatable, so the next start loses nothing. A
supervisor restarts the worker and alarms on a repeated exit.
"""

import logging
import os
from enum import IntEnum
from typing import Any, NoReturn

import structlog

from services.common.runtime.fence import EXIT_FENCED


class Exit(IntEnum):
    """Why the worker left; numbers as in the README."""

    FAILED = 70
    HOLE = 71
    NO_ARRAYS = 72
    FENCED = EXIT_FENCED
    FOREIGN_WRITER = 74


def leave(code: Exit, why: str, **facts: Any) -> NoReturn:
    """Say why and end the process."""
    structlog.get_logger("metering").critical(why, exit_code=int(code), **facts)
    logging.shutdown()
    os._exit(code)
