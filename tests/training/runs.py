"""A finished run of four steps, copied for every test that does something to it."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgeom.cli import main
from jaxgeom.training import load_start
from jaxgeom.training.timing import is_time
from tests.tiny import write_tiny_model


def write_inputs(directory: Path) -> Path:
    """A model, demonstrations and prompts."""
    write_tiny_model(directory / "model")
    turns = [[{"role": "user", "content": f"{n}+1="}, {"role": "assistant", "content": str(n + 1)}] for n in range(16)]
    (directory / "demos.jsonl").write_text("".join(json.dumps({"messages": both}) + "\n" for both in turns))
    prompts = [{"prompt": both[:1], "reward_model": {"ground_truth": both[1]["content"]}} for both in turns]
    (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    return directory


def arguments(inputs: Path, out: Path, **changes: Any) -> list[str]:
    """The command line of the run; a change of None leaves an option out."""
    given: dict[str, Any] = {"model": inputs / "model", "data": inputs / "demos.jsonl", "out": out, "steps": 4}
    given |= {"eval_data": inputs / "prompts.jsonl", "batch_size": 8, "lr": 1e-3, "save_every": 2, "seed": 0}
    given |= {"max_new_tokens": 2, **changes}
    words = [(f"--{name.replace('_', '-')}", str(value)) for name, value in given.items() if value is not None]
    return ["train", "sft", *(word for pair in words for word in pair)]


def train(inputs: Path, out: Path, *more: str, **changes: Any) -> int:
    """Runs it in this process."""
    return main([*arguments(inputs, out, **changes), *more])


def weights(run: Path, step: int) -> list[np.ndarray]:
    """The parameters of a checkpoint."""
    return [
        np.asarray(leaf) for leaf in jax.tree.leaves(load_start(f"{run}@{step}", mesh=None, compute_dtype="float32")[1])
    ]


def steps(run: Path) -> list[int]:
    """The steps that have a folder."""
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


def logged(run: Path) -> list[dict]:
    """The metrics without the time that they took."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not is_time(key)} for row in rows]


def flip(path: Path, place: int | None = None) -> None:
    """Turns one bit of a file."""
    held = bytearray(path.read_bytes())
    held[len(held) // 2 if place is None else place] ^= 0x10
    path.write_bytes(held)


def files(directory: Path) -> dict[str, bytes]:
    """All that lies below a directory."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
