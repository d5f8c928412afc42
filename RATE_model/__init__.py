"""RATE: the Recurrent Action Transformer with Memory, and all that its experiments share."""
