"""Running a stage: requests, processes, ranks and the run folder."""
