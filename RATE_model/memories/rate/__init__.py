"""RATE and its relatives (RMT, TrXL, DT, ...): segments, memory tokens, cached hidden states, the valve."""
