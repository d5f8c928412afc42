"""ViZDoom-Two-Colors: see a red or green pillar, then collect items of its colour alone."""
