"""Real processes killed with SIGKILL at random moments, while they save too, end as undisturbed ones, bit for bit."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import command

KILLS = Path(__file__).resolve().parent.parent / "experiments/kills.py"


@pytest.mark.slow
@pytest.mark.long
def test_killed_runs_of_every_objective_end_as_undisturbed_ones(tmp_path):
    _, environment = command()
    line = [sys.executable, str(KILLS), "--kills", "2", "--out", str(tmp_path)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    rows = re.findall(r"^\| ([\w-]+) \| 2 \| (\d+) \| 0 \|$", done.stdout, re.MULTILINE)
    assert [name for name, _ in rows] == ["sft", "rlvr", "rlvr-updates", "opd", "opd-lag", "confined"]
    assert all(int(saving) for _, saving in rows)
