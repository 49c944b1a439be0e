"""What a model is trained for: one small class a file, of the form of `objective.Objective`."""
