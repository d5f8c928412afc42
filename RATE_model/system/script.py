"""Imported by a script before anything that takes long: a signal, or too little memory for an import, ends it at once.

That is, with one line instead of a traceback from the middle of an import; see `interrupts.quit_on_signals`.
"""

from RATE_model.system.interrupts import quit_on_signals

quit_on_signals()
