"""Runs killed with SIGKILL at random moments and gone on with, beside the same runs undisturbed.

    python experiments/kills.py --kills 20 --out DIR
    python experiments/kills.py --kills 10 --runs sft confined

Every run (SFT; RLVR and OPD that score their answers in the step; RLVR with two updates a rollout; OPD on rollouts
drawn one ahead; SFT confined to its early subspace) is trained undisturbed and with kills: a moment after its log has
grown, by a random wait, every second time while a checkpoint is being written. Then parameters, optimizer, position in
the data and what a rollout has left of every checkpoint, `metrics.jsonl` but for its times, and `samples.jsonl` are
compared bit for bit. Prints a table; the exit status is 1 where anything differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxgeom.data import ArithmeticTask, arithmetic, embedded_model
from jaxgeom.data.rows import write_jsonl
from jaxgeom.training.timing import is_time

STEPS, SAVE_EVERY, LONGEST = 60, 2, 600.0
RUNS = ["sft", "rlvr", "rlvr-updates", "opd", "opd-lag", "confined"]
_COMMON = ["--steps", STEPS, "--batch-size", 16, "--save-every", SAVE_EVERY, "--lr", "1e-4", "--seed", 3]
_SAMPLED = ["--max-new-tokens", 12, "--samples-per-prompt", 4]


def arguments(name: str, data: Path) -> list[str]:
    """The command line of a run, but for `--out`."""
    demonstrations, prompts, early = (data / part for part in ("demonstrations.jsonl", "prompts.jsonl", "early"))
    taught = ["--model", embedded_model("base"), "--data", demonstrations, "--max-length", 64]
    sampled = ["--model", embedded_model("base"), "--data", prompts, *_SAMPLED]
    words: dict[str, list[Any]] = {
        "early": ["sft", *taught, "--steps", 2, "--batch-size", 16, "--lr", "1e-4", "--save-every", 2],
        "sft": ["sft", *taught, *_COMMON, "--keep", 4],
        "rlvr": ["rlvr", *sampled, *_COMMON],
        "rlvr-updates": ["rlvr", *sampled, *_COMMON, "--updates-per-rollout", 2],
        "opd": ["opd", *sampled, *_COMMON, "--teacher", embedded_model("teacher")],
        "opd-lag": ["opd", *sampled, *_COMMON, "--teacher", embedded_model("teacher"), "--rollout-lag", 1],
        "confined": ["sft", *taught, *_COMMON, "--confine", "coordinates", "--basis-from", f"{early}@2"],
    }
    return ["train", *map(str, words[name])]


def write_data(data: Path) -> None:
    """Demonstrations and prompts of the synthetic task, and the short run whose update confines another."""
    data.mkdir(parents=True, exist_ok=True)
    task = ArithmeticTask(terms=3, digits=2)
    write_jsonl(data / "demonstrations.jsonl", arithmetic.demonstrations(task, 400, seed=0))
    write_jsonl(data / "prompts.jsonl", arithmetic.prompts(task, 200, seed=1))
    subprocess.run(*_command("early", data, data / "early"), check=True, stdout=subprocess.DEVNULL)


def killed(name: str, data: Path, out: Path, kills: int, rng: random.Random) -> tuple[int, int]:
    """Trains with kills, then to its end.

    Returns:
        Kills, and how many of them met a checkpoint that was being written.
    """
    done = saving = 0
    while done < kills and not (out / "done").exists():
        process = _start(name, data, out)
        grown, begun = _size(out), time.monotonic()
        # Once it steps, a moment later; every second time as soon as a checkpoint is begun after that.
        while process.poll() is None and _size(out) <= grown and time.monotonic() < begun + LONGEST:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.3))
        if done % 2:
            while process.poll() is None and not _is_saving(out):
                time.sleep(0.0005)
            time.sleep(rng.uniform(0.0, 0.1))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done, saving = done + 1, saving + _is_saving(out)
        elif process.returncode:
            raise SystemExit(f"{name}: ended with status {process.returncode}")
    subprocess.run(*_command(name, data, out), check=True, stdout=subprocess.DEVNULL)
    return done, saving


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs, by file and name."""
    found = []
    steps = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (one, other)]
    if steps[0] != steps[1]:
        found.append(f"checkpoints: {steps[0]} and {steps[1]}")
    for step in sorted(set(steps[0]) & set(steps[1])):
        held, mine = (_contents(run / "checkpoints" / step) for run in (one, other))
        found += [f"{step}: {name}" for name in sorted({*held, *mine}) if not _same(held.get(name), mine.get(name))]
    logs = [[_without_times(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    found += [f"metrics.jsonl: row {n}" for n, (a, b) in enumerate(zip(*logs, strict=False), 1) if a != b]
    if len(logs[0]) != len(logs[1]):
        found.append(f"metrics.jsonl: {len(logs[0])} and {len(logs[1])} rows")
    if (one / "samples.jsonl").read_bytes() != (other / "samples.jsonl").read_bytes():
        found.append("samples.jsonl")
    return found


def _contents(step: Path) -> dict[str, Any]:
    """All of a checkpoint by name."""
    found: dict[str, Any] = {}
    with ocp.StandardCheckpointer() as reader:
        for item in ("params", "optimizer"):
            held = jax.tree_util.tree_leaves_with_path(reader.restore(step / item))
            found |= {item + jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in held}
    for item in ("data", "key"):
        found[item] = json.loads((step / item / "metadata").read_text())
    if (step / "pending.npz").exists():
        with np.load(step / "pending.npz") as left:
            found |= {f"pending.{name}": left[name] for name in left.files}
    return found


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return one is not None and one == other


def _without_times(line: str) -> dict[str, Any]:
    return {name: value for name, value in json.loads(line).items() if not is_time(name)}


def _size(out: Path) -> int:
    log = out / "metrics.jsonl"
    return log.stat().st_size if log.exists() else 0


def _is_saving(out: Path) -> bool:
    return any((out / "checkpoints").glob(".*.partial*"))


def _command(name: str, data: Path, out: Path) -> tuple[list[str]]:
    return ([sys.executable, "-m", "jaxgeom.cli", *arguments(name, data), "--out", str(out)],)


def _start(name: str, data: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen(*_command(name, data, out), stdout=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each run")
    parser.add_argument("--runs", nargs="+", default=RUNS)
    parser.add_argument("--out", type=Path, default=Path("kills"))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    out = given.out.absolute()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # What is compiled once need not be in every process that is killed.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    write_data(out / "data")
    print("| run | kills | of them while saving | differences |\n|---|---|---|---|", flush=True)
    bad: list[str] = []
    for name in given.runs:
        subprocess.run(*_command(name, out / "data", out / name), check=True, stdout=subprocess.DEVNULL)
        kills, saving = killed(name, out / "data", out / f"{name}-killed", given.kills, random.Random(given.seed))
        found = differences(out / name, out / f"{name}-killed")
        print(f"| {name} | {kills} | {saving} | {len(found)} |", flush=True)
        bad += [f"{name}: {line}" for line in found]
    print("\n".join(["", *bad]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
