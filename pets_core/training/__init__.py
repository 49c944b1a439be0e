"""Training: schedules, optimizer groups, LR finder, loop and checkpoints."""
