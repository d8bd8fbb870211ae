"""Seconds a step of the three objectives end to end: where they go, what the loop adds, and TRL beside them.

    python experiments/benchmarks/training.py                        # the embedded models
    python experiments/benchmarks/training.py --shape 31m
    python experiments/benchmarks/training.py --peer trl             # needs trl, accelerate, datasets, peft

Trains each objective with the product's own loop, logs and all, and prints the median step, tokens a second, the
share of the time by phase, and the loop's overhead: its median step over the sum of the medians of the bare jitted
programs (sampling, scoring, update) on such a rollout. `--peer trl` trains the same model on the same rows with the
same number of sequences, the same answer length and AdamW at the same rate with TRL's SFTTrainer, GRPOTrainer and
DistillationTrainer, and prints the ratio of the medians. The first steps, which compile, are left out of all. In
brackets the same in processor seconds, which a busy machine lengthens less.
"""

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgeom.cpu_memory import keep_freed_memory
from jaxgeom.data import ArithmeticTask, arithmetic, embedded_model
from jaxgeom.data.chat import pad_token
from jaxgeom.data.rows import write_jsonl
from jaxgeom.models import Qwen3, Qwen3Config, save_model
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.progress import Reporter, Task
from jaxgeom.rollout import sample
from jaxgeom.training import (
    OPDSettings,
    RLVRSettings,
    RunInputs,
    SFTSettings,
    initial_state,
    make_optimizer,
    make_train_step,
    score,
    train,
)
from jaxgeom.training.objectives import Tools
from jaxgeom.training.ready import make_ready
from jaxgeom.training.rollouts import sampling_settings
from jaxgeom.training.timing import PHASES

SEQUENCES, ANSWER, RATE, WARM = 64, 32, 1e-5, 3
COLUMNS = ("seconds", "tokens_per_second", *(f"time/{phase}" for phase in PHASES))


def write_inputs(directory: Path, shape: str) -> tuple[Path, Path]:
    """Rows of the synthetic task, and model and teacher: the embedded ones, or random ones of 31 M parameters."""
    task = ArithmeticTask(terms=3, digits=2)
    write_jsonl(directory / "demonstrations.jsonl", arithmetic.demonstrations(task, 4000, seed=0))
    write_jsonl(directory / "prompts.jsonl", arithmetic.prompts(task, 2000, seed=1))
    if shape == "embedded":
        return Path(embedded_model("base")), Path(embedded_model("teacher"))
    fields = json.loads((Path(embedded_model("base")) / "config.json").read_text())
    fields |= {"vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8}
    fields |= {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": False}
    config = Qwen3Config.from_hf(fields)
    for seed, name in enumerate(("model", "teacher")):
        params = jax.jit(Qwen3(config).init)(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))["params"]
        save_model(directory / name, config, params, tokenizer_from=embedded_model("base"))
    return directory / "model", directory / "teacher"


def settings_of(name: str, steps: int) -> Any:
    """Of a run, all alike: rate, sequences, answer length; nothing is evaluated, and saved at both ends alone."""
    common: dict[str, Any] = {
        "steps": steps, "batch_size": SEQUENCES, "save_every": 10_000, "max_new_tokens": ANSWER,
        "optimizer": AdamWSettings(learning_rate=RATE, schedule="constant", weight_decay=0.0, clip_norm=1.0),
    }  # fmt: skip
    if name == "sft":
        return SFTSettings(**common, max_length=64)
    if name == "rlvr":
        return RLVRSettings(**common, samples_per_prompt=8, dynamic_filter=False)
    return OPDSettings(**common, samples_per_prompt=8, support="full" if name == "opd full" else "sampled")


def inputs_of(name: str, directory: Path, model: Path, teacher: Path) -> RunInputs:
    data = directory / ("demonstrations.jsonl" if name == "sft" else "prompts.jsonl")
    return RunInputs(model=model, data=data, teacher=teacher if name.startswith("opd") else None)


class Times(NamedTuple):
    """Seconds, and processor seconds of the process."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> "Times":
        return cls(time.perf_counter(), time.process_time())

    @classmethod
    def median(cls, ends: list["Times"]) -> "Times":
        """Of the differences of the moments at which steps ended."""
        return cls(*np.median(np.diff(np.array(ends), axis=0), axis=0).tolist())

    def over(self, other: "Times") -> "Times":
        return Times(self.wall / other.wall, self.processor / other.processor)


class Ticks(Reporter):
    """Notes the end of every step, and says nothing."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.ends: list[Times] = []

    def task(self, label: str, total: int, *, done: int = 0) -> Task:
        ends = self.ends

        class Noting(Task):
            def advance(self, units: int = 1, status: str = "") -> None:
                ends.append(Times.now())

        return Noting(self.console, label, total, done=done)


def run(name: str, steps: int, inputs: RunInputs, out: Path) -> tuple[Times, dict[str, float]]:
    """A step of a whole run, and the medians of what its log says, without the steps that compile."""
    ticks = Ticks()
    train(settings_of(name, steps), inputs, out, reporter=ticks)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    logged = {key: statistics.median(row[key] for row in rows[WARM:]) for key in COLUMNS}
    return Times.median(ticks.ends[WARM - 1 :]), logged


def bare(name: str, rounds: int, inputs: RunInputs, out: Path) -> Times:
    """Times of a step's jitted programs, each on its own: the sum of their medians."""
    settings = settings_of(name, rounds)
    ready = make_ready(settings, inputs, out, Reporter(quiet=True), force=False, kept_rows=None)
    assert ready is not None
    objective, params, frozen = ready.objective, ready.params, ready.frozen
    tools = Tools(ready.rows.batches(settings), ready.rows.tokenizer, ready.rows.rewards)
    drawn = objective.draw(params, frozen, tools, 0)
    batch = objective.prepare(params, frozen, drawn, 0).batches[0]
    optimizer = make_optimizer(settings, params)
    held = [initial_state(jax.tree.map(jnp.copy, params), optimizer)]
    step = make_train_step(objective, optimizer, held[0])

    def update() -> Any:
        held[0], metrics = step(held[0], batch, objective.step_inputs(frozen))
        return metrics

    programs: list[Callable[[], Any]] = [update]
    for actor in objective.scorers(params, frozen).values():
        programs.append(lambda actor=actor: score(actor.model, actor.params, batch.tokens, batch.valid))
    sampler = objective.sampler(params, frozen)
    if sampler is not None:
        prompts = [prompt.tokens for prompt in drawn.answers.prompts]
        how = sampling_settings(settings, tools.tokenizer, sampler)
        pad = pad_token(tools.tokenizer, sampler.model.config.vocab_size)
        programs.append(
            lambda: sample(sampler.model, sampler.params, prompts, range(len(prompts)), how, pad_id=pad).tokens
        )
    return Times(*map(sum, zip(*(times_of(program, rounds) for program in programs), strict=True)))


def times_of(program: Callable[[], Any], rounds: int) -> Times:
    ends = []
    for _ in range(rounds + 2):
        jax.block_until_ready(program())
        ends.append(Times.now())
    return Times.median(ends[1:])


def trl(name: str, steps: int, directory: Path, model: Path, teacher: Path, out: Path) -> Times:
    """The median step of TRL's trainer for an objective."""
    import torch
    import transformers
    from datasets import Dataset
    from trl import (
        DistillationConfig,
        DistillationTrainer,
        GRPOConfig,
        GRPOTrainer,
        SFTConfig,
        SFTTrainer,
    )

    class Clock(transformers.TrainerCallback):
        """Notes the end of every step."""

        def __init__(self) -> None:
            self.ends: list[Times] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(Times.now())

    clock = Clock()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    rows = [json.loads(line) for line in (directory / inputs_of(name, directory, model, teacher).data).open()]
    load = functools.partial(transformers.AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
    common: dict[str, Any] = {
        "output_dir": str(out), "max_steps": steps, "per_device_train_batch_size": SEQUENCES, "learning_rate": RATE,
        "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0, "logging_strategy": "no",
        "report_to": "none", "save_strategy": "no", "bf16": False, "use_cpu": True, "disable_tqdm": True,
        "gradient_checkpointing": False, "optim": "adamw_torch",
    }  # fmt: skip
    given: dict[str, Any] = {"processing_class": tokenizer, "callbacks": [clock]}
    if name == "sft":
        data = Dataset.from_list([{"prompt": r["messages"][:-1], "completion": r["messages"][-1:]} for r in rows])
        trainer = SFTTrainer(load(model), args=SFTConfig(**common, max_length=64), train_dataset=data, **given)
    elif name == "rlvr":
        data = Dataset.from_list([{"prompt": r["prompt"], "truth": r["reward_model"]["ground_truth"]} for r in rows])

        def right(completions: list[Any], truth: list[str], **_: Any) -> list[float]:
            texts = [turns[0]["content"].split()[-1:] for turns in completions]
            return [float(bool(text) and text[0] == wanted) for text, wanted in zip(texts, truth, strict=True)]

        config = GRPOConfig(**common, num_generations=8, max_completion_length=ANSWER, beta=0.0, loss_type="dapo")
        trainer = GRPOTrainer(load(model), reward_funcs=right, args=config, train_dataset=data, **given)
    else:
        data = Dataset.from_list([{"prompt": r["prompt"]} for r in rows])
        config = DistillationConfig(**common, max_completion_length=ANSWER)
        trainer = DistillationTrainer(load(model), load(teacher), args=config, train_dataset=data, **given)
    trainer.train()
    return Times.median(clock.ends[WARM - 1 :])


def shown(times: Times, digits: int = 3) -> str:
    return f"{times.wall:.{digits}f} ({times.processor:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("embedded", "31m"), default="embedded")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5, help="of the bare programs")
    parser.add_argument("--objectives", nargs="+", default=["sft", "rlvr", "opd", "opd full"])
    parser.add_argument("--peer", choices=("trl",))
    given = parser.parse_args()
    keep_freed_memory()
    print(f"{given.shape}, {SEQUENCES} sequences a step, {jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    print(
        "| objective | s/step | tokens/s | " + " | ".join(PHASES) + " | bare programs s | loop adds | peer s | ratio |"
    )
    print("|---" * (len(PHASES) + 7) + "|")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model, teacher = write_inputs(directory, given.shape)
        for objective in given.objectives:
            inputs = inputs_of(objective, directory, model, teacher)
            seconds, found = run(objective, given.steps, inputs, directory / f"run {objective}")
            programs = bare(objective, given.rounds, inputs, directory / f"bare {objective}")
            peer = trl(objective, given.steps, directory, model, teacher, directory / "peer") if given.peer else None
            cells = [shown(seconds), f"{found['tokens_per_second']:,.0f}"]
            cells += [f"{found[f'time/{phase}']:.0%}" for phase in PHASES]
            adds = seconds.over(programs)
            cells += [shown(programs), f"{adds.wall - 1:+.0%} ({adds.processor - 1:+.0%})"]
            cells += ["", ""] if peer is None else [shown(peer), shown(peer.over(seconds), 2)]
            print(f"| {objective} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
