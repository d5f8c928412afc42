"""ViZDoom-Two-Colors: see a red or green pillar, then live on items of its colour alone."""
