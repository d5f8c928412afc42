"""The ViZDoom-Two-Colors scenario and environment, its expert and its data."""
