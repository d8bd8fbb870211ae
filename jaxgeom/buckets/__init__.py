"""Runs, models and data in a bucket (`gs://…`): what is small has a copy on this machine, checkpoints have none."""
