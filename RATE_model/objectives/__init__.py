"""What is learned: a room for each objective. From hidden states and a batch to a loss, whatever the memory is.

    cloning      actions, with returns-to-go or without: what every agent learns
    auxiliary    what helps a memory to learn what to keep: the next latent, the return, privileged arrays of the data
    privileged   how such arrays become numbers, as targets here and as inputs of an oracle

docs/objectives.md says how to use them.
"""
