"""Training loop, curricula, schedules, checkpoints, run directories and tracking."""
