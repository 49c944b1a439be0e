"""How a stage is run: requests, processes, ranks, and the folder of a run."""
