"""Checkpoints of the published RATE code, turned into checkpoints of this project.

    python -m RATE_model.original CHECKPOINT --output CONVERTED

`weights` reads published files and renames what is in them, `variants` recognises the environment by names and shapes,
`settings` finds what weights do not tell (segment length, cache, heads of the valve).
"""
