"""The machine: files, processes, devices."""

import os

# Warnings of PyTorch's network code are pages long; we say in a line what is wrong. Read when torch is imported.
if "RANK" in os.environ:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
