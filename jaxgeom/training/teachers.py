"""The teachers of a run: loaded on the student's mesh over the student's vocabulary, and which row has which."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt

from jaxgeom import processes
from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.data.chat import has_tokenizer
from jaxgeom.data.prepared import Prepared
from jaxgeom.errors import UserError, listed
from jaxgeom.models import Qwen3, checked_config
from jaxgeom.training.checkpointing import load_start, tokenizer_directory
from jaxgeom.training.rollouts import Actor
from jaxgeom.training.settings import OPDSettings
from jaxgeom.training.vocabulary import shared_vocabulary, with_rows


def load_teachers(
    settings: OPDSettings, paths: Sequence[Path], student: Qwen3, tokenizer: Any, **load: Any
) -> list[Actor]:
    """Every teacher, with as many rows in its embedding as the student has.

    Args:
        settings: of the run.
        paths: where they lie.
        student: the module that is trained; rows that are padding there (`Qwen3.vocabulary`) are padding here.
        tokenizer: the student's.
        load: of `load_start`.

    Returns:
        The teachers, over the tokens that the student is over.

    Raises:
        UserError: no teacher, one that cannot be loaded, or one of another vocabulary.
    """
    if not paths:
        raise UserError("on-policy distillation needs a teacher")
    rows, found = student.config.vocab_size, []
    if settings.teacher_dtype is not None:
        load |= {"dtype": settings.teacher_dtype, "compute_dtype": settings.teacher_dtype}
    for path in paths:
        own = checked_config(open_checkpoint(path, base=load["base"])).vocab_size
        files = tokenizer_directory(path, load["base"])
        emitted = shared_vocabulary(tokenizer, rows, files, own, path)
        if not has_tokenizer(files):
            load["say"](f"{path}: has no tokenizer: its tokens are taken to be the model's")
        model, params = load_start(path, **load)
        if emitted is not None:
            load["say"](
                f"{path}: its embedding has {own} rows, the model's has {rows}: those from token {emitted} on are"
                " padding, masked in both"
            )
            model, params = with_rows(model, params, rows)
        found.append(Actor(model.clone(vocabulary=student.vocabulary), params))
    return found


def are_equal(one: PyTree, other: PyTree) -> bool:
    """Whether two models have the same parameters, wherever these lie: by checksums of their bits and places.

    Args:
        one: a tree of arrays.
        other: likewise.
    """
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree) for tree in (one, other)]
    if shapes[0] != shapes[1]:
        return False
    sums = [processes.whole(_checksums(tree)) for tree in (one, other)]
    return all(map(np.array_equal, *map(jax.tree.leaves, sums)))


@jax.jit
def _checksums(tree: PyTree) -> PyTree:
    def checksum(leaf: Array) -> UInt[Array, ""]:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        number = jnp.zeros(leaf.shape, jnp.uint32)
        for axis, size in enumerate(leaf.shape):
            number = number * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        weights = number * np.uint32(0x9E3779B9) | np.uint32(1)  # odd: a change of one entry always shows
        return jnp.sum(bits.astype(jnp.uint32) * weights, dtype=jnp.uint32)  # of integers: the same in any order

    return jax.tree.map(checksum, tree)


def assigned(rows: Prepared, path: Path, teachers: Sequence[Path]) -> Prepared:
    """Rows with the place of their teacher among several, 0 where there is one.

    Args:
        rows: prompts; their field `teacher` names one: its place, its path as given, or the last part of that.
        path: of the rows.
        teachers: as they were given.

    Raises:
        UserError: a row that names none of several, naming row and field; one of several that no row names.
    """
    if len(teachers) < 2:
        return dataclasses.replace(rows, teachers=[0] * len(rows))
    names = [{place, str(teacher), teacher.name} for place, teacher in enumerate(teachers)]
    lasts = [teacher.name for teacher in teachers]
    known = listed([str(teacher) if lasts.count(teacher.name) > 1 else teacher.name for teacher in teachers])
    places = []
    for number, name in zip(rows.numbers.tolist(), rows.teachers, strict=True):
        # true is equal to 1 in Python, and no place
        meant = [] if isinstance(name, bool) else [place for place, called in enumerate(names) if name in called]
        if len(meant) != 1:
            what = "has no field 'teacher'" if name is None else f"teacher={name!r} names {len(meant)} of the teachers"
            raise UserError(f"{path}: row {number}: {what}; one of {known}, or a place from 0, is needed")
        places += meant
    unread = [str(teacher) for place, teacher in enumerate(teachers) if place not in places]
    if unread:
        raise UserError(f"teacher={unread[0]}: no row of {path} names it in its field 'teacher'")
    return dataclasses.replace(rows, teachers=places)
