"""Command lines: options, limits, and the flow that scripts share."""
