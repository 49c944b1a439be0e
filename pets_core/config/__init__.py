"""Settings of the pipeline: one frozen model per stage."""
