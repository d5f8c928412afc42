"""Atari: Breakout, Qbert, Seaquest, Pong and any other game of ale-py, from DQN-replay data or from our own."""
