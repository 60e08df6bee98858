"""The ``dato`` command: configuration in, a search out."""

import os
import signal
import sys
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped\n")
    os._exit(128 + number)


# Before anything else is imported: Ctrl-C in a command's first moments is no traceback. Whoever imports this package is left alone.
if os.path.basename(sys.argv[0]) in ("-m", "dato"):
    for _signal in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(_signal) is not signal.SIG_IGN:
            signal.signal(_signal, _end)
