"""What an environment is to everything that trains, plays and reports: see `contract`."""
