"""The machine: files, processes, devices."""

import os

# PyTorch's network warnings are pages long; we print our own one-line errors. Read when torch is imported.
if "RANK" in os.environ:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
