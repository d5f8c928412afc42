"""The training loop, curricula, schedules, checkpoints, run directories, tracking."""
