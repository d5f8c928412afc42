"""Imported by scripts before anything slow: a signal, or lack of memory during an import, ends them with one line.

See `interrupts.quit_on_signals`.
"""

from RATE_model.system.interrupts import quit_on_signals

quit_on_signals()
