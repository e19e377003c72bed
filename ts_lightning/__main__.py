"""`python -m ts_lightning`: the same as `ts-lightning`, for jobs that may be signalled before they have started.

SIGUSR1 ends a process that has no handler. Here it is held back from the first line on, and delivered to the handler
once `fit` has set it: a job that is told to stop while it still imports saves and requeues after its first step.
"""

import signal
import sys

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    from ts_lightning.cli import main

    sys.exit(main())
