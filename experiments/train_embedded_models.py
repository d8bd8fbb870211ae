"""How the two models that come with the package were trained, from scratch; run again, it makes them again.

    python experiments/train_embedded_models.py --out runs/embedded [--install]

*base* (0.5 M parameters) reads plain text: single additions, and lists that are repeated (without these it learns no
copying, and SFT then needs thousands of steps to teach it). It has never seen a question, a chain of partial sums or
the chat format: 0 on the task. *teacher* (1.8 M) is trained on additions and on worked demonstrations of the task.
Both are stored in bfloat16, as published checkpoints are. `--install` copies them into the package.

On 2 CPU cores that did other work too, 2026-11-23: base 8 minutes, teacher 25 minutes; held-out accuracy 0.000 and
0.998.
"""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro

from jaxgeom.data import arithmetic
from jaxgeom.data.character_tokenizer import write_character_tokenizer
from jaxgeom.data.embedded import EMBEDDED_MODELS
from jaxgeom.data.rows import write_jsonl
from jaxgeom.models import Qwen3, Qwen3Config, save_model
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.progress import Reporter
from jaxgeom.training import RunInputs, SFTSettings, load_start, train

TASK = arithmetic.ArithmeticTask(terms=3, digits=2)
OPTIMIZER = AdamWSettings(
    learning_rate=2e-3,  # 1e-3 learned half as fast in trials; 4e-3 diverged
    schedule="cosine",
    learning_rate_end=1e-4,
    warmup_fraction=0.05,
    b1=0.9,
    b2=0.95,
    weight_decay=0.1,
    clip_norm=1.0,
)


@dataclass(frozen=True)
class Recipe:
    """Size, text and length of training of one model."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    demonstrations: int
    texts: int
    repetitions: bool
    steps: int


RECIPES = {
    "base": Recipe(
        hidden=128, layers=3, heads=4, feed_forward=256, demonstrations=0, texts=120_000, repetitions=True, steps=2_000
    ),
    "teacher": Recipe(
        hidden=192,
        layers=4,
        heads=6,
        feed_forward=512,
        demonstrations=120_000,
        texts=30_000,
        repetitions=False,
        steps=2_500,
    ),
}


def architecture(recipe: Recipe) -> Qwen3Config:
    """A Qwen3 configuration of the recipe's size, with grouped queries and a tied head as the small Qwen3 models."""
    return Qwen3Config.from_hf(
        {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": 112,  # 103 tokens, rounded up to a multiple of 16
            "hidden_size": recipe.hidden,
            "num_hidden_layers": recipe.layers,
            "num_attention_heads": recipe.heads,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "intermediate_size": recipe.feed_forward,
            "max_position_embeddings": 512,
            "rope_theta": 10_000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "initializer_range": 0.05,
        }
    )


def make(name: str, out: Path, reporter: Reporter, seed: int) -> Path:
    """Trains one model and writes its Hugging Face directory; returns it."""
    recipe = RECIPES[name]
    start, data, held_out = out / f"{name}-init", out / f"{name}.jsonl", out / "heldout.jsonl"
    if not start.exists():
        config = architecture(recipe)
        params = Qwen3(config).init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))["params"]
        write_character_tokenizer(start)
        save_model(start, config, params, dtype="float32")
        documents = arithmetic.pretraining_text(TASK, recipe.texts, seed=seed, repetitions=recipe.repetitions)
        texts = [{"text": text} for text in documents]
        write_jsonl(data, texts + arithmetic.demonstrations(TASK, recipe.demonstrations, seed=seed))
        write_jsonl(held_out, arithmetic.prompts(TASK, 500, split="heldout", seed=0))
    run = out / f"{name}-run"
    train(
        SFTSettings(
            steps=recipe.steps,
            batch_size=64,
            optimizer=OPTIMIZER,
            seed=seed,
            save_every=500,
            eval_every=500,
            max_new_tokens=32,
            max_length=128,
        ),
        RunInputs(model=start, data=data, eval_data=held_out),
        run,
        reporter=reporter,
    )
    model, params = load_start(f"{run}@{recipe.steps}", mesh=None, compute_dtype="float32")
    target = out / name
    save_model(target, model.config, params, dtype="bfloat16", tokenizer_from=start)
    return target


def main(out: Path, models: tuple[str, ...] = ("base", "teacher"), seed: int = 0, install: bool = False) -> None:
    """Trains the models.

    Args:
        out: Where runs and models are written; an interrupted run resumes.
        models: Which of the two.
        seed: Of initialisation and data.
        install: Copy the models into the package.
    """
    reporter = Reporter()
    out.mkdir(parents=True, exist_ok=True)
    for name in models:
        reporter.say(f"{name}: {dataclasses.asdict(RECIPES[name])}")
        made = make(name, out, reporter, seed)
        if install:
            shutil.copytree(made, EMBEDDED_MODELS / name, dirs_exist_ok=True)


if __name__ == "__main__":
    tyro.cli(main)
