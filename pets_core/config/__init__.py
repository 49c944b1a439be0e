"""Every setting of the pipeline, defined once: a frozen model a stage."""
