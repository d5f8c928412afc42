"""Continuous control: HalfCheetah, Hopper and Walker2d from D4RL's data or from our own."""
