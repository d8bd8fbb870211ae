"""What a run reads besides weights: tokenizer, rows and held-out prompts, whole, before anything is written."""

import dataclasses
import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grain

from jaxgeom import processes
from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.checkpoints.adapters import base_of, is_adapter_directory
from jaxgeom.data import chat, pipelines
from jaxgeom.data.conversations import Need
from jaxgeom.data.prepared import Limits, Prepared
from jaxgeom.data.preparing import prepare_demonstrations, prepare_prompts
from jaxgeom.errors import UserError
from jaxgeom.files import write_atomically
from jaxgeom.models import Qwen3Config, checked_config, copy_tokenizer
from jaxgeom.progress import Reporter
from jaxgeom.rewards import Rewards, Truth
from jaxgeom.training.checkpointing import tokenizer_directory
from jaxgeom.training.run_rewards import judged_by, run_rewards
from jaxgeom.training.run_templates import TEMPLATES, list_templates, remove_templates
from jaxgeom.training.settings import OnPolicySettings, RunInputs, RunSettings, SFTSettings
from jaxgeom.unread_settings import refuse_unread


@dataclass(frozen=True)
class RunRows:
    """A run's rows, ready.

    Attributes:
        tokenizer: Of the model.
        stops: Tokens that end an answer: of the tokenizer, `config.json` and `generation_config.json` together.
        data: What is trained on.
        held_out: What is evaluated on, by name, "" for a file without one.
        context: Tokens that the model takes.
        rewards: What answers are worth.
    """

    tokenizer: Any
    stops: tuple[int, ...]
    data: Prepared
    held_out: dict[str, Prepared]
    context: int = 1 << 30
    rewards: Rewards = field(default_factory=Rewards.of)

    @property
    def evaluated(self) -> dict[str, list[pipelines.Prompt]]:
        """The held-out prompts to which an answer can be judged, by name of their file."""
        return {
            name: [one for one in pipelines.all_prompts(rows) if self.rewards.own or one.ground_truth is not None]
            for name, rows in self.held_out.items()
        }

    @property
    def truths(self) -> list[Truth]:
        """All that answers are judged by, in training and evaluation."""
        files = (self.data, *self.held_out.values())
        return [truth for rows in files for truth in rows.truths if truth is not None]

    @property
    def verifiers(self) -> dict[str, str]:
        """The digest of every verifier of the user's own, by its name."""
        return {reward.name: reward.digest for reward, _ in self.rewards.own}

    def digests(self) -> dict[str, Any]:
        """What tells these rows from others, and what answers to them are worth: JSON values."""
        named = {"data": self.data} | {f"eval_data/{name}".rstrip("/"): rows for name, rows in self.held_out.items()}
        return {
            "rows": {name: rows.digest for name, rows in named.items()},
            "stops": list(self.stops),
            "verifiers": self.verifiers,
        }

    def batches(self, settings: RunSettings) -> grain.DatasetIterator:
        """The run's iterator over its rows."""
        if settings.reads == "demonstrations":
            assert isinstance(settings, SFTSettings)
            if settings.packing:
                length = min(settings.max_length, self.context)
                return pipelines.packed_batches(
                    self.data, batch_size=settings.batch_size, length=length, seed=settings.seed
                )
            return pipelines.demonstration_batches(self.data, batch_size=settings.batch_size, seed=settings.seed)
        assert isinstance(settings, OnPolicySettings)
        return pipelines.prompt_batches(self.data, batch_size=settings.prompts_per_rollout, seed=settings.seed)

    def keep(self, directory: Path) -> None:
        """Puts the tokens where a run that goes on finds them."""
        for prepared in (self.data, *self.held_out.values()):
            prepared.keep(directory)


class _Source(NamedTuple):
    """What rows are read with: the model's configuration, its tokenizer, what ends an answer and what one is worth."""

    config: Qwen3Config
    tokenizer: Any
    stops: tuple[int, ...]
    rewards: Rewards


def read_run_rows(
    settings: RunSettings, inputs: RunInputs, *, kept: Path | None = None, reporter: Reporter | None = None,
    by_shares: bool = False,
) -> RunRows:  # fmt: skip
    """Reads, renders and tokenizes everything that a run will see.

    Args:
        settings: of the run.
        inputs: what it reads.
        kept: where `RunRows.keep` may have put the tokens.
        reporter: where to say what was left out.
        by_shares: whether all processes call this together: each reads the files and makes a share of their rows, and
            an error in one is that of all.

    Raises:
        UserError: a tokenizer, template, file or row that cannot be used, or nothing to learn from; a verifier of the
            user's that cannot be imported.
    """
    together = processes.together if by_shares else processes.by_itself
    config, tokenizer, stops, rewards = together(lambda: _source(settings, inputs))
    limits = Limits(vocabulary=config.vocab_size, context=config.max_position_embeddings)
    shared: dict[str, Any] = {
        "settings": settings.rows, "kept": kept, "reporter": reporter, "by_shares": by_shares,
    }  # fmt: skip
    needed: Need = "needed" if settings.needs_truth else "optional"
    answered = dataclasses.replace(limits, new_tokens=settings.max_new_tokens)
    if isinstance(settings, SFTSettings):
        cut = dataclasses.replace(limits, max_length=settings.max_length)
        data = prepare_demonstrations(inputs.data, tokenizer, limits=cut, stops=stops, **shared)
    else:
        assert isinstance(settings, OnPolicySettings)
        answered = dataclasses.replace(answered, max_prompt=settings.max_prompt_length)
        data = prepare_prompts(inputs.data, tokenizer, limits=answered, truth=needed, **shared)
        if not rewards.own:
            _say_unjudged(data, inputs.data, "learned from all the same, rewards are over the others", reporter)
        data = together(functools.partial(judged_by, rewards, data, inputs.data))
    held_out = {}
    some = dataclasses.replace(answered, rows=settings.eval_limit)
    for name, path in inputs.evaluations.items():
        found = prepare_prompts(path, tokenizer, limits=some, truth=needed, **shared)
        if not rewards.own:
            if all(truth is None for truth in found.truths):
                raise UserError(f"{path}: no row has a right answer to evaluate by")
            _say_unjudged(found, path, "the accuracy is over the others", reporter)
        held_out[name] = together(functools.partial(judged_by, rewards.counting, found, path))
    return RunRows(tokenizer, stops, data, held_out, config.max_position_embeddings, rewards)


def _source(settings: RunSettings, inputs: RunInputs) -> _Source:
    """Reads what comes before the rows."""
    rewards = run_rewards(settings)
    directory = tokenizer_directory(inputs.model, inputs.base)
    config = checked_config(open_checkpoint(inputs.model, base=inputs.base))
    tokenizer = chat.load_tokenizer(directory, chat_template=settings.rows.chat_template)
    stops = chat.stop_tokens(tokenizer, {*_declared_stops(inputs, directory), *config.stop_tokens})
    if not inputs.evaluations:
        refuse_unread(settings, ("eval_samples",), "eval_data=None")
    samples = settings.reads == "prompts" or bool(inputs.evaluations)
    if samples and not any(stop < config.vocab_size for stop in stops):
        what = f"{', '.join(map(str, stops))} are" if stops else "no token is"
        raise UserError(
            f"{directory}: {what} given to end an answer, with vocab_size={config.vocab_size}; 'eos_token_id' in"
            " generation_config.json names one"
        )
    possible = tuple(stop for stop in stops if stop < config.vocab_size)  # no other can be sampled
    return _Source(config, tokenizer, possible, rewards)


def _say_unjudged(rows: Prepared, path: Path, what: str, reporter: Reporter | None) -> None:
    """Says how many rows have no right answer."""
    count = sum(truth is None for truth in rows.truths)
    if count and reporter is not None:
        all_ = count == len(rows)
        reporter.say(f"{path}: {count:,} of {len(rows):,} rows have no right answer" + ("" if all_ else f"; {what}"))


def write_tokenizer(source: Path, directory: Path, rows: RunRows, settings: RunSettings) -> None:
    """The run's own tokenizer: what it trained with is what later runs and exports have.

    Args:
        source: the model's tokenizer.
        directory: where it goes.
        rows: of the run; its stop tokens become those of `generation_config.json`.
        settings: of the run; its chat template becomes the tokenizer's, and the arguments of that the template's own.
    """
    remove_templates(directory)
    there = {path.name for path in (directory / TEMPLATES).glob("*.jinja")}
    copy_tokenizer(source, directory)
    written = {path.name for path in (source / TEMPLATES).glob("*.jinja")}
    arguments = chat.template_arguments(settings.rows.template_argument)
    templates = rows.tokenizer.chat_template
    if templates and (arguments or settings.rows.chat_template is not None):
        for name in written - there:
            (directory / TEMPLATES / name).unlink()
        named = {"default": templates} if isinstance(templates, str) else templates
        written = {f"{name}.jinja" for name in named if name != "default"}
        for name, template in named.items():
            place = "chat_template.jinja" if name == "default" else f"{TEMPLATES}/{name}.jinja"
            write_atomically(directory / place, chat.with_defaults(template, arguments))
    list_templates(directory, written)
    path = directory / "generation_config.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_atomically(path, json.dumps(held | {"eos_token_id": list(rows.stops)}, indent=2) + "\n")


def _declared_stops(inputs: RunInputs, directory: Path) -> set[int]:
    """What the directory of the tokenizer declares, and that of an adapter's base beside it."""
    found = set(chat.declared_stop_tokens(directory))
    if is_adapter_directory(Path(inputs.model)):
        base = base_of(Path(inputs.model), inputs.base)
        found |= set(chat.declared_stop_tokens(tokenizer_directory(base)))
    return found
