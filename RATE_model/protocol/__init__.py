"""Proving memory: statistics with confidence intervals, and a verdict on whether and how long an agent remembers."""
