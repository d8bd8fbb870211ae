"""Rows to batches, as grain pipelines whose position can be saved and restored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from jaxgeom.data.buckets import bucket_length
from jaxgeom.data.chat import encode_demonstration, encode_prompt
from jaxgeom.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """One prompt to answer: its row number (which seeds its samples), token ids, and the verified answer."""

    row: int
    tokens: tuple[int, ...]
    ground_truth: str


def demonstration_batches(
    rows: Sequence[dict],
    tokenizer: Any,
    *,
    batch_size: int,
    max_length: int,
    seed: int,
) -> grain.DatasetIterator:
    """An endless, reshuffled iterator of SFT batches.

    Args:
        rows: Rows with `messages`, or with plain `text` (every token is then a target).
        tokenizer: A Hugging Face tokenizer with a chat template.
        batch_size: Rows a batch.
        max_length: Longer rows are cut here.
        seed: Of the shuffling.

    Returns:
        An iterator (with `get_state`/`set_state`) of dicts of `[batch, bucket]` arrays: `tokens` int32, `valid` bool,
        `loss_mask` bool; right-padded.
    """

    def encode(row: dict) -> dict[str, np.ndarray]:
        if "text" in row:
            tokens = np.array([*tokenizer(row["text"], add_special_tokens=False)["input_ids"]], np.int32)
            mask = np.ones(len(tokens), bool)
        else:
            demonstration = encode_demonstration(tokenizer, row["messages"])
            tokens, mask = demonstration.tokens, demonstration.loss_mask
        return {"tokens": tokens[:max_length], "loss_mask": mask[:max_length]}

    def pad(examples: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        length = bucket_length(max(len(example["tokens"]) for example in examples))
        batch = {
            "tokens": np.zeros((len(examples), length), np.int32),
            "valid": np.zeros((len(examples), length), bool),
            "loss_mask": np.zeros((len(examples), length), bool),
        }
        for i, example in enumerate(examples):
            size = len(example["tokens"])
            batch["tokens"][i, :size] = example["tokens"]
            batch["loss_mask"][i, :size] = example["loss_mask"]
            batch["valid"][i, :size] = True
        return batch

    return _endless(rows, encode, pad, batch_size, seed)


def prompt_batches(rows: Sequence[dict], tokenizer: Any, *, batch_size: int, seed: int) -> grain.DatasetIterator:
    """An endless, reshuffled iterator of lists of `batch_size` `Prompt`s.

    Args:
        rows: Rows with `prompt` (messages) and `reward_model.ground_truth`.
        tokenizer: A Hugging Face tokenizer with a chat template.
        batch_size: Prompts a batch.
        seed: Of the shuffling.

    Returns:
        An iterator with `get_state`/`set_state`.
    """
    numbered = [{**row, "row": index} for index, row in enumerate(rows)]
    return _endless(numbered, lambda row: encode_prompt_row(row, tokenizer), list, batch_size, seed)


def encode_prompt_row(row: dict, tokenizer: Any) -> Prompt:
    """One row with `row`, `prompt` and `reward_model.ground_truth`, tokenized."""
    return Prompt(row["row"], tuple(encode_prompt(tokenizer, row["prompt"])), str(row["reward_model"]["ground_truth"]))


def _endless(rows, encode, collate, batch_size: int, seed: int) -> grain.DatasetIterator:
    if len(rows) < 1 or batch_size < 1:
        raise UserError(f"{len(rows)} rows and batch size {batch_size}: nothing to train on")
    dataset = grain.MapDataset.source(rows).seed(seed).shuffle().repeat().map(encode)
    # Grain counts the batches of an endless data set in floating point: those of one would be more than an index holds.
    dataset = dataset.batch(batch_size, batch_fn=collate) if batch_size > 1 else dataset.map(lambda row: collate([row]))
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))
