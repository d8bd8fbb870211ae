"""What stands on disk: which parameters a checkpoint's tensors hold, and the summary and the files of a report."""
