"""A cloud in a folder, and how the scripts of `tpu/` are run in it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Cloud:
    """A folder with programs that come before the machine's own.

    Attributes:
        folder: of buckets, calls and states.
        store: the folder of `gs://bucket/job`.
        environment: of what runs in it.
    """

    def __init__(self, folder: Path):
        self.folder, self.store = folder, folder / "bucket/job"
        self.store.mkdir(parents=True)
        self.environment = os.environ | {"FAKE_CLOUD": str(folder), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        (folder / "bin").mkdir()
        self.program("gcloud", f'exec {sys.executable} -S {ROOT / "tests/tpu/fake_gcloud.py"} "$@"')

    def program(self, name: str, text: str) -> Path:
        """Puts a shell program into the path."""
        path = self.folder / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
        return path

    def start(self, script: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        """Starts a script of `tpu/`."""
        return subprocess.Popen(
            ["bash", str(ROOT / "tpu" / script), *map(str, arguments)],
            env=self.environment | environment,
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, script: str, *arguments: object, **environment: str) -> tuple[int, str, str]:
        """Runs a script of `tpu/`; exit status, stdout, stderr."""
        process = self.start(script, *arguments, **environment)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def calls(self) -> list[Sequence[str]]:
        """What `gcloud` was called with, in order."""
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)
