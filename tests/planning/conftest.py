"""What compiles for TPUs needs libtpu, which is in the extra `tpu`: without it that file is not there to be run."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("libtpu") else ["test_tpu_compile.py"]
