"""What a process has to do for the rows of a run over several: all of them, as each did before, or a share.

    python experiments/benchmarks/rows.py
    python experiments/benchmarks/rows.py --processes 4 --rows 20000 --tokenizer DIR

Real processes on loopback prepare one file of demonstrations twice: each all rows by itself, then by shares, which
must be the same to the last bit. Rows are pieces of this repository's own texts, some 300 words each, and so is what
the default tokenizer, a byte-level BPE of 8,000 tokens, is trained on. Prints seconds and processor seconds of every
process (with those of the processes that render for it), and what the exchange takes of them.
"""

import argparse
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from jaxgeom import processes
from jaxgeom.data import preparing, rendering
from jaxgeom.data.chat import load_tokenizer
from jaxgeom.data.prepared import Limits
from jaxgeom.data.row_settings import RowSettings
from jaxgeom.data.rows import write_jsonl

ROOT = Path(__file__).parents[2]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def texts() -> list[str]:
    """Pages and modules of this repository."""
    return [
        path.read_text(encoding="utf-8") for path in sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("jaxgeom/**/*.py")])
    ]


def write_tokenizer(directory: Path) -> Path:
    """A byte-level BPE, as those of Qwen3 are, with ChatML's template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[2], pad_token=special[0])
    fast.chat_template = TEMPLATE
    fast.save_pretrained(str(directory))
    return directory


def write_rows(path: Path, count: int) -> Path:
    """Questions of 40 words, answers of 100 to 400."""
    words = [word for text in texts() for word in text.split() if "<|" not in word]
    draw = random.Random(0)

    def some(number: int) -> str:
        begin = draw.randrange(len(words) - number)
        return " ".join(words[begin : begin + number])

    pairs = [(some(40), some(draw.randrange(100, 400))) for _ in range(count)]
    roles = ("user", "assistant")
    write_jsonl(
        path, [{"messages": [{"role": r, "content": c} for r, c in zip(roles, pair, strict=True)]} for pair in pairs]
    )
    return path


def cost(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, processor seconds with those of the processes that render, and what `work` returns."""
    begin, used = time.perf_counter(), processor_seconds()
    made = work()
    rendering.close_renderers()
    return time.perf_counter() - begin, processor_seconds() - used, made


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)


def one_process(path: Path, tokenizer: Any) -> None:
    """What each process does."""
    processes.join()
    given = {"settings": RowSettings(), "limits": Limits(vocabulary=1 << 20, context=4096), "stops": (2,)}
    exchange = [0.0]
    real = preparing.of_all

    def timed(share: Any) -> Any:
        processes.exchanged("all are here")
        begin = time.perf_counter()
        made = real(share)
        exchange[0] = time.perf_counter() - begin
        return made

    found = []
    with mock.patch.object(preparing, "of_all", timed):
        for by_shares in (False, True):
            processes.exchanged("begin")
            found.append(
                cost(
                    lambda shares=by_shares: preparing.prepare_demonstrations(
                        path, tokenizer, by_shares=shares, **given
                    )
                )
            )
    (whole_s, whole_cpu, whole), (share_s, share_cpu, shared) = found
    assert whole.digest == shared.digest and whole.notes == shared.notes
    said = (
        f"all rows {whole_s:.1f} s, {whole_cpu:.1f} s of processors; by shares {share_s:.1f} s, {share_cpu:.1f} s of"
        f" processors, {exchange[0]:.2f} s of it the exchange; {len(whole.tokens):,} tokens, the same"
    )
    for index, line in enumerate(processes.exchanged(said)):
        if processes.is_first():
            print(f"process {index}: {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.file is not None:
        one_process(given.file, load_tokenizer(given.tokenizer))
        return
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        file = write_rows(Path(folder) / "rows.jsonl", given.rows)
        tokenizer = given.tokenizer or write_tokenizer(Path(folder) / "tokenizer")
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
        probe.close()
        shared = {
            "JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(given.processes),
        }  # fmt: skip
        command = [sys.executable, __file__, "--file", str(file), "--tokenizer", str(tokenizer)]
        started = [
            subprocess.Popen(command, env={**os.environ, **shared, "JAX_PROCESS_ID": str(index)})
            for index in range(given.processes)
        ]
        failed = [process.wait() for process in started]
        if any(failed):
            sys.exit(1)


if __name__ == "__main__":
    main()
