"""What all tests have in common."""

import signal

# A shell ignores Ctrl-C for what it runs in the background, and what is started from there inherits that: tests that
# send it would hold in a terminal only.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
