"""The five kinds of inputs that are damaged, each with the command that reads it."""

import gzip
import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

from numpy.random import Generator

from tests.fuzzing.mutations import damaged_bytes, damaged_value, json_text, pick
from tests.tiny import write_tiny_model

_SAID = [{"role": "user", "content": "12+30"}, {"role": "assistant", "content": "\\boxed{42}"}]
_ASKED = {"prompt": _SAID[:1], "reward_model": {"ground_truth": "42"}, "data_source": "sums"}
_EXPERIMENT = """
from pathlib import Path
from jaxgeom.comparison import CompareSettings
from jaxgeom.data import ArithmeticTask
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.study import Experiment, SyntheticData
from jaxgeom.training import OPDSettings, RLVRSettings, SFTSettings

common, rate = dict(steps=2, batch_size=8), AdamWSettings(learning_rate=1e-3)
experiment = Experiment(
    name="tiny",
    base=Path("base"),
    teacher=Path("base"),
    data=SyntheticData(task=ArithmeticTask(terms=2, digits=2), demonstrations=20, prompts=10, heldout=4, seed=0),
    anchor=SFTSettings(max_new_tokens=16, optimizer=rate, max_length=48, **common),
    opd=OPDSettings(max_new_tokens=16, optimizer=rate, samples_per_prompt=4, alpha=1, **common),
    rlvr=RLVRSettings(max_new_tokens=16, optimizer=rate, refills=1, save_every=1, **common),
    sft_continued=SFTSettings(max_new_tokens=16, optimizer=rate, micro_batches=1, **common),
    measure=CompareSettings(angle_k=4, mask_rank=4, subspace_k=4, include="q_proj"),
    seeds=(0,),
)
"""
_PYTHON = (
    "None", "True", "-1", "0", "1", "2", "3", "8", "16", "80.5", "10**9", "10**400", "float('nan')", "float('inf')",
    "'x'", "''", "'../../x'", "'\\ud800'", "b'x'", "()", "(0, 0)", "('a',)", "(0.5,)", "(-1,)", "[]", "{}", "object()",
    "print", "lambda: 0", "Path('absent')", "1/0", "undefined", "__import__('sys').exit(3)", "range(3)", "(", "'",
)  # fmt: skip

Arguments = list[str | Path]


def write_base(directory: Path) -> None:
    """Two small models, and rows of both kinds, all of them sound."""
    write_tiny_model(directory / "base", num_hidden_layers=1)
    write_tiny_model(directory / "other", num_hidden_layers=1, seed=1)
    for name, row in (("demonstrations", {"messages": _SAID}), ("prompts", _ASKED)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(8)))


def _compare(rng: Generator, first: Path, second: Path, out: Path) -> Arguments:
    sides = pick(rng, ((first, second), (second, first)))
    name = pick(rng, ("compare", "compare", "trajectory"))
    return [name, *sides, "--out", out, "--suite", "fast", "--subspace-k", 2, "--include", "q_proj|norm|embed"]


def _train(objective: str, model: Path, data: Path, out: Path) -> Arguments:
    further = ["--samples-per-prompt", 4, "--max-new-tokens", 4] if objective == "rlvr" else ["--max-length", 64]
    given = ["--model", model, "--data", data, "--out", out, "--steps", 1, "--batch-size", 8, "--lr", 1e-3]
    return ["train", objective, *given, *further]


def _use(rng: Generator, folder: Path, out: Path) -> Arguments:
    """A command that reads the model `given`."""
    if rng.random() < 0.6:
        return _compare(rng, folder / "base", folder / "given", out)
    return _train("sft", folder / "given", folder / "demonstrations.jsonl", out)


def checkpoint(rng: Generator, folder: Path, out: Path) -> Arguments:
    """Weights: bytes, header, index, shards, and what is no file at all."""
    given = folder / "given"
    shutil.copytree(folder / "base", given)
    path = given / "model.safetensors"
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    kind = int(rng.integers(6))
    if kind == 0:
        path.write_bytes(damaged_bytes(rng, data))
    elif kind <= 2:
        odd = (*header, "F64", "BF16", "U8", "F8_E4M3", [0, 0], [2**62, 2**62], [-1], [1.5], None, "../x", 10**9, {})
        text = json_text(damaged_value(rng, header, odd)).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    elif kind == 3:
        wrong = int(pick(rng, (0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1)))
        path.write_bytes(struct.pack("<Q", wrong) + data[8:])
    elif kind == 4:
        names = {name: "model.safetensors" for name in header if name != "__metadata__"}
        odd = (
            "../model.safetensors",
            "/etc/hostname",
            "absent.safetensors",
            "config.json",
            "",
            3,
            None,
            [],
            {},
            "\x00",
        )
        index = {"metadata": {"total_size": len(body)}, "weight_map": names}
        (given / "model.safetensors.index.json").write_text(json_text(damaged_value(rng, index, odd)))
    else:
        path.unlink()
        instead: list[Callable[[], object]] = [
            lambda: path.mkdir(), lambda: os.mkfifo(path), lambda: path.symlink_to(path),
            lambda: path.symlink_to("absent"), lambda: path.write_bytes(b""), lambda: None,
            lambda: (given / "pytorch_model.bin").write_bytes(rng.bytes(64)),
            lambda: (given / "model-00001-of-00002.safetensors").write_bytes(data),
        ]  # fmt: skip
        pick(rng, instead)()
    return _use(rng, folder, out)


def config(rng: Generator, folder: Path, out: Path) -> Arguments:
    """`config.json` and `generation_config.json`."""
    given = folder / "given"
    shutil.copytree(folder / "base", given)
    path = given / pick(rng, ("config.json", "config.json", "config.json", "generation_config.json"))
    held = json.loads(path.read_text()) if path.exists() else {"eos_token_id": [1, 2], "do_sample": True}
    _write_damaged(rng, path, held)
    return _use(rng, folder, out)


def tokenizer(rng: Generator, folder: Path, out: Path) -> Arguments:
    """The files of a tokenizer, its chat template among them."""
    given = folder / "given"
    shutil.copytree(folder / "base", given)
    names = sorted(path.name for path in given.iterdir() if "token" in path.name or "template" in path.name)
    path = given / pick(rng, names)
    if path.suffix == ".json":
        _write_damaged(rng, path, json.loads(path.read_text()))
    else:
        templates = (
            "{% if %}", "{{ raise_exception('no') }}", "{{ messages[9].content }}", "{{ messages[0]['content'] * 2 }}",
            "", "x", "{% for m in messages %}{{ m.content.strip().nothing.more }}{% endfor %}", "{{ 1 // 0 }}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% for m in messages %}{{ m }}{% endfor %}",
            "{{ messages | tojson }}", "{% include 'x' %}", "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}",
        )  # fmt: skip
        text = path.read_text()
        path.write_bytes(pick(rng, templates).encode() if rng.random() < 0.6 else damaged_bytes(rng, text.encode()))
    objective = pick(rng, ("sft", "rlvr"))
    data = folder / {"sft": "demonstrations.jsonl", "rlvr": "prompts.jsonl"}[objective]
    return _train(objective, given, data, out)


def rows(rng: Generator, folder: Path, out: Path) -> Arguments:
    """Demonstrations and prompts: a value in a row, the lines, the file."""
    objective = pick(rng, ("sft", "rlvr"))
    held = {"messages": _SAID} if objective == "sft" else _ASKED
    texts = [json.dumps(held)] * 12
    for _ in range(int(rng.integers(1, 4))):
        texts[int(rng.integers(12))] = json_text(damaged_value(rng, held))
    ends = pick(rng, (*["\n"] * 8, "\r\n", "\n\n", "\r", "\u2028", ""))
    data = ends.join(texts).encode()
    form = int(rng.integers(8))
    if form == 0:
        data = damaged_bytes(rng, data)
    elif form == 1:
        data = pick(rng, (b"\xef\xbb\xbf" + data, f"[{','.join(texts)}]".encode(), data.decode().encode("utf-16"), b""))
    elif form == 2:
        data = damaged_bytes(rng, gzip.compress(data)) if rng.random() < 0.5 else gzip.compress(data)
    path = folder / pick(rng, ("rows.jsonl", "rows.jsonl", "rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.parquet"))
    path.write_bytes(data)
    given = _train(objective, folder / "base", path, out)
    return [*given, "--on-bad-row", "skip"] if rng.random() < 0.4 else given


def experiment(rng: Generator, folder: Path, out: Path) -> Arguments:
    """A Python file whose values are of other types and sizes, or that is cut short."""
    text = _EXPERIMENT
    for _ in range(int(rng.integers(1, 3))):
        fields = list(re.finditer(r"(\w+)=((?:[A-Z]\w+\(\w+=[^()]*\))|(?:Path\([^()]*\))|\([^()]*\)|[^,()\s]+)", text))
        field = pick(rng, fields)
        change = int(rng.integers(8))
        if change == 0:
            text = text[: int(rng.integers(len(text)))]
        elif change == 1:
            text = text[: field.start(1)] + pick(rng, ("step", "lr", "seed", "", "x y")) + text[field.end(1) :]
        else:
            text = text[: field.start(2)] + pick(rng, _PYTHON) + text[field.end(2) :]
        if change == 0:
            break
    path = folder / "experiment.py"
    path.write_text(text)
    return ["study", path, "--out", out]


def _write_damaged(rng: Generator, path: Path, held: object) -> None:
    if rng.random() < 0.15:
        path.write_bytes(damaged_bytes(rng, json.dumps(held).encode()))
        return
    for _ in range(int(rng.integers(1, 3))):
        held = damaged_value(rng, held)
    path.write_text(json_text(held))


KINDS: dict[str, Callable[[Generator, Path, Path], Arguments]] = {
    "checkpoint": checkpoint, "config": config, "tokenizer": tokenizer, "rows": rows, "experiment": experiment,
}  # fmt: skip
