"""Objectives: from hidden states and a batch to a loss, for any memory.

    cloning      actions, with or without returns-to-go; every agent learns them
    auxiliary    targets that train memory: the next latent, the return, privileged arrays of the data
    privileged   normalisation of such arrays, as targets and as inputs of an oracle

See docs/objectives.md.
"""
