"""Convert checkpoints of the published RATE code to checkpoints of this project.

    python -m RATE_model.original CHECKPOINT --output CONVERTED

`weights` reads published files and renames their tensors, `variants` recognises the environment from names and shapes,
`settings` finds what weights do not show (segment length, cache, heads of the valve).
"""
