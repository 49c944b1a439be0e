"""The recipe: schedules, optimizer groups, the LR finder and the loop."""
