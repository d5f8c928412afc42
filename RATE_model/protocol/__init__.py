"""What was proved: statistics with intervals, and a verdict on what an agent remembers and for how long."""
