"""Prepared rows to batches, as grain pipelines whose position can be saved and restored."""

from collections.abc import Sequence
from dataclasses import dataclass

import grain
import numpy as np
from grain.experimental import FirstFitPackIterDataset

from jaxgeom.data.buckets import bucket_length
from jaxgeom.data.prepared import Prepared
from jaxgeom.errors import UserError
from jaxgeom.rewards import GivenRow, Truth


@dataclass(frozen=True)
class Prompt:
    """One prompt to answer.

    Attributes:
        row: Its number in the file.
        tokens: Ids.
        ground_truth: What answers are judged by; None without.
        teacher: Who teaches it.
        given: The row as the file has it, where something reads it.
    """

    row: int
    tokens: tuple[int, ...]
    ground_truth: Truth | None
    teacher: str | int | None = None
    given: GivenRow | None = None


def demonstration_batches(prepared: Prepared, *, batch_size: int, seed: int) -> grain.DatasetIterator:
    """An endless, reshuffled iterator of SFT batches.

    Args:
        prepared: Demonstrations.
        batch_size: Rows a batch.
        seed: Of the shuffling.

    Returns:
        An iterator (with `get_state`/`set_state`) of dicts of `[batch, bucket]` arrays: `tokens` int32, `valid` bool,
        `loss_mask` bool; right-padded.
    """

    def pad(places: Sequence[int]) -> dict[str, np.ndarray]:
        examples = [prepared.row(place) for place in places]
        length = bucket_length(max(len(example.tokens) for example in examples))
        batch = {
            "tokens": np.zeros((len(examples), length), np.int32),
            "valid": np.zeros((len(examples), length), bool),
            "loss_mask": np.zeros((len(examples), length), bool),
        }
        for i, example in enumerate(examples):
            size = len(example.tokens)
            batch["tokens"][i, :size] = example.tokens
            batch["loss_mask"][i, :size] = example.loss_mask
            batch["valid"][i, :size] = True
        return batch

    return _endless(len(prepared), pad, batch_size, seed)


def packed_batches(prepared: Prepared, *, batch_size: int, length: int, seed: int) -> grain.DatasetIterator:
    """An endless, reshuffled iterator of SFT batches whose rows hold several demonstrations each, first fit.

    Args:
        prepared: Demonstrations of at most `length` tokens.
        batch_size: Rows a batch.
        length: Columns of every row.
        seed: Of the shuffling.

    Returns:
        An iterator (with `get_state`/`set_state`) of dicts of `[batch, length]` arrays: `tokens` int32, `valid` bool,
        `loss_mask` bool, `segments` int32: 1, 2, … for the demonstrations of a row, 0 for the padding at its end. No
        demonstration is cut or left out; its first token is never a target, as nothing of its own stands before it.
    """

    def example(place: int) -> dict[str, np.ndarray]:
        held = prepared.row(place)
        mask = np.array(held.loss_mask, bool)
        mask[:1] = False
        return {"tokens": np.asarray(held.tokens, np.int32), "loss_mask": mask}

    def batch(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        segments = np.stack([row["tokens_segment_ids"] for row in rows]).astype(np.int32)
        tokens, mask = (np.stack([row[name] for row in rows]) for name in ("tokens", "loss_mask"))
        return {"tokens": tokens, "valid": segments > 0, "loss_mask": mask.astype(bool), "segments": segments}

    _require_rows(len(prepared), batch_size)
    examples = grain.MapDataset.range(len(prepared)).seed(seed).shuffle().repeat().map(example)
    packed = FirstFitPackIterDataset(
        examples.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)),
        length_struct={"tokens": length, "loss_mask": length},
        num_packing_bins=batch_size,
        shuffle_bins=False,
    )
    return iter(packed.batch(batch_size, batch_fn=batch))


def prompt_batches(prepared: Prepared, *, batch_size: int, seed: int) -> grain.DatasetIterator:
    """An endless, reshuffled iterator of lists of `batch_size` `Prompt`s.

    Args:
        prepared: Prompts.
        batch_size: Prompts a batch.
        seed: Of the shuffling.

    Returns:
        An iterator with `get_state`/`set_state`.
    """
    prompts = all_prompts(prepared)
    return _endless(len(prepared), lambda places: [prompts[place] for place in places], batch_size, seed)


def all_prompts(prepared: Prepared) -> list[Prompt]:
    """The prompts of a file, in order."""
    prompts = []
    for place, truth in enumerate(prepared.truths):
        tokens = prepared.row(place).tokens.tolist()
        given = None if prepared.given is None else prepared.given[place]
        prompts.append(Prompt(int(prepared.numbers[place]), tuple(tokens), truth, prepared.teachers[place], given))
    return prompts


def _endless(rows: int, collate, batch_size: int, seed: int) -> grain.DatasetIterator:
    _require_rows(rows, batch_size)
    dataset = grain.MapDataset.range(rows).seed(seed).shuffle().repeat()
    # Grain counts the batches of an endless data set in floating point: those of one would be more than an index holds.
    single = batch_size == 1
    dataset = dataset.map(lambda place: collate([place])) if single else dataset.batch(batch_size, batch_fn=collate)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def _require_rows(rows: int, batch_size: int) -> None:
    if rows < 1 or batch_size < 1:
        raise UserError(f"{rows} rows and batch size {batch_size}: nothing to train on")
