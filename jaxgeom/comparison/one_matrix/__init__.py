"""Everything that is measured of one matrix: between two checkpoints, along a run, and between two runs."""
