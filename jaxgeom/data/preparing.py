"""All rows of a file read, rendered and tokenized once, before anything is written.

A row that cannot be used is refused with its number, or left out and counted.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxgeom.data.alphabet import Alphabet
from jaxgeom.data.chat import ChatFormat, Demonstration, chat_format, encode_texts, require_written
from jaxgeom.data.conversations import Conversation, Need, read_demonstration, read_prompt, unread_columns
from jaxgeom.data.prepared import Limits, Prepared, recall
from jaxgeom.data.rendering import CHUNK, EndlessTemplateError, LostRowsError, Request, render_rows
from jaxgeom.data.row_settings import RowSettings
from jaxgeom.data.rows import Row, file_digest, read_row_file
from jaxgeom.data.templates import Rendered, RowError
from jaxgeom.errors import UserError, listed
from jaxgeom.progress import Reporter

_FORMAT = 5  # of the rules by which rows become tokens
_SHOWN_FROM = 5_000  # rows; fewer take seconds
_CHUNK = 256
_REASONS = 8
_HEAD = 60  # characters of what a template writes, in a note


def prepare_demonstrations(
    path: Path, tokenizer: Any, *, settings: RowSettings, limits: Limits, stops: Sequence[int] = (),
    kept: Path | None = None, reporter: Reporter | None = None,
) -> Prepared:  # fmt: skip
    """Every demonstration of a file as tokens and targets.

    Args:
        path: see `read_row_file` for files and `read_demonstration` for rows.
        tokenizer: as `load_tokenizer` returns it.
        settings: of the rows.
        limits: of the model and the run.
        stops: tokens that end an answer; said where no target has one.
        kept: a directory where `Prepared.keep` may have put them.
        reporter: where to say what was left out.

    Raises:
        UserError: a row that cannot be used (unless they are left out), a token outside the vocabulary, or no row that
            teaches anything.
    """
    work = _Work(path, tokenizer, settings, limits, "demonstrations", reporter)
    limit = min(limits.context, limits.max_length or limits.context)
    found = work.recalled(kept, work.key)
    if found is None:
        cut = lost = ended = beyond = 0
        for row, conversation, encoded in work.encoded():
            tokens, mask = encoded.tokens, encoded.loss_mask
            if not mask[1:].any():  # the first token is predicted from nothing
                work.bad(row, RowError("has no token to learn from"))
                continue
            work.use(row, tokens[:limit], mask[:limit]) if mask[1:limit].any() else work.leave_out(
                row, f"no answer within {limit:,} tokens (--max-length, or the model's context)"
            )
            cut += len(tokens) > limit and bool(mask[1:limit].any())
            lost += int(mask[limit:].sum()) if mask[1:limit].any() else 0
            ends = np.isin(tokens, stops) & mask
            ended += conversation.text is not None or bool(ends[:limit].any())
            if conversation.text is None and work.goes_on(tokens, mask, ends):
                beyond += 1
        if cut:
            work.note(f"{cut:,} rows are cut at {limit:,} tokens and lose {lost:,} tokens of their answers")
        if beyond and not work.asked_too:
            work.note(
                f"in {beyond:,} rows the chat template goes on after the token that ends the answer, and that is"
                " learned too: what is sampled ends before it"
            )
        if work.unread:
            work.note(f"columns that are not read: {listed([name[:40] for name in work.unread], 8)}")
        if stops and not ended:
            work.note("no answer has a token that ends it: the model is not taught to stop")
        found = work.done()
    return work.said(found)


def prepare_prompts(
    path: Path, tokenizer: Any, *, settings: RowSettings, limits: Limits, truth: Need = "needed",
    kept: Path | None = None, reporter: Reporter | None = None,
) -> Prepared:  # fmt: skip
    """Every prompt of a file as tokens, and its truth.

    Args:
        path: see `read_row_file` for files and `read_prompt` for rows.
        tokenizer: as `load_tokenizer` returns it.
        settings: of the rows.
        limits: of the model and the run.
        truth: whether the right answer is needed, as for `read_prompt`.
        kept: a directory where `Prepared.keep` may have put them.
        reporter: where to say what was left out.

    Raises:
        UserError: a row that cannot be used (unless they are left out), a token outside the vocabulary, or none left.
    """
    work = _Work(path, tokenizer, settings, limits, truth, reporter)
    # Rows that all have their answer are the same rows whether it is needed or not, and are kept once.
    answered = work.key_of("needed") if truth == "optional" and settings.on_bad_row == "refuse" else work.key
    found = work.recalled(kept, answered) or work.recalled(kept, work.key)
    if found is None:
        for row, conversation, encoded in work.encoded():
            size = len(encoded.tokens)
            if limits.max_prompt is not None and size > limits.max_prompt:
                work.leave_out(row, f"longer than {limits.max_prompt:,} tokens (--max-prompt-length)")
            elif size + limits.new_tokens > limits.context:
                work.bad(
                    row,
                    RowError(
                        f"its {size} tokens and max_new_tokens={limits.new_tokens} do not fit into the model's context"
                        f" of {limits.context}; {_room(limits, size)}"
                    ),
                )
            else:
                work.use(row, encoded.tokens, encoded.loss_mask, conversation)
        found = work.done()
        if None not in found.truths:
            found = dataclasses.replace(found, key=answered)
    return work.said(found)


def _texts(value: Any) -> Iterator[str]:
    """Every text in a message or a tool: contents, thoughts, arguments of calls, and what else a template may write."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from (str(key), *_texts(entry))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry)


def _room(limits: Limits, size: int) -> str:
    """How a prompt would fit, or how a run goes on without it."""
    left, kept = limits.context - size, limits.context - limits.new_tokens
    ways = [f"--max-new-tokens {left} would"] if left > 0 else ["the prompt alone fills it"]
    ways += [f"--max-prompt-length {kept} leaves out such rows"] if kept > 0 else []
    return "; ".join(ways)


class _Work:
    """One file on its way: what is used, what is bad, what is left out."""

    def __init__(
        self, path: Path, tokenizer: Any, settings: RowSettings, limits: Limits,
        kind: Need | Literal["demonstrations"], reporter: Reporter | None,
    ):  # fmt: skip
        self.path, self.tokenizer, self.settings, self.limits = path, tokenizer, settings, limits
        self.kind: Need | Literal["demonstrations"] = kind
        self.reporter = reporter or Reporter(quiet=True)
        self.format: ChatFormat | None = (
            chat_format(tokenizer, settings.template_argument) if self._has_template() else None
        )
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self.alphabet = Alphabet(tokenizer)
        self.key = self.key_of(kind)
        self.total = 0
        self.used: list[tuple[int, np.ndarray, np.ndarray, Conversation | None]] = []
        self.faults: dict[str, list[tuple[Row, str]]] = {}
        self.bad_rows: list[tuple[Row, RowError]] = []
        self.last_only = self.asked_too = self.headless = 0
        self.head = ""
        self.notes: list[str] = []
        self.unread: dict[str, None] = {}

    def recalled(self, kept: Path | None, key: str) -> Prepared | None:
        """What was kept under a key; where that is damaged it is said, and None."""
        was_there = kept is not None and (kept / f"{key}.npz").is_file()
        found = recall(kept, key)
        if was_there and found is None:
            self.reporter.say(f"{self.path}: the kept rows {kept}/{key}.npz are not as they were written: made anew")
        return found

    def encoded(self) -> Iterator[tuple[Row, Conversation, Demonstration]]:
        """Row, conversation and tokens of every row that can be read and rendered; the others are counted."""
        rows = read_row_file(self.path)[: self.limits.rows]
        self.total = len(rows)
        readable: list[tuple[Row, Conversation]] = []
        for row in rows:
            try:
                readable.append((row, self._read(row)))
            except RowError as error:
                self.bad(row, error)
        with_template = [(row, one) for row, one in readable if one.text is None]
        texts = [(row, one) for row, one in readable if one.text is not None]
        made: dict[int, Demonstration] = {}
        if len(rows) >= _SHOWN_FROM:
            with self.reporter.task(f"{self.path.name}: rows", len(readable)) as task:
                for count in self._tokenize(with_template, texts, made):
                    task.advance(count)
        else:
            for _ in self._tokenize(with_template, texts, made):
                pass
        for row, conversation in readable:
            if row.number in made:
                self._require_vocabulary(row, made[row.number].tokens)
                yield row, conversation, made.pop(row.number)

    def goes_on(self, tokens: np.ndarray, mask: np.ndarray, ends: np.ndarray) -> bool:
        """Whether text is learned right after a token that ends an answer; a line's end is none."""
        for place in np.flatnonzero(ends[:-1] & mask[1:]):
            beyond = mask[place + 1 :]
            size = len(beyond) if beyond.all() else int(np.argmin(beyond))
            if self.tokenizer.decode(tokens[place + 1 : place + 1 + size]).strip():
                return True
        return False

    def bad(self, row: Row, error: RowError) -> None:
        """Counts a row that cannot be used."""
        self.bad_rows.append((row, error))

    def leave_out(self, row: Row, reason: str) -> None:
        """Counts a row that the settings leave out."""
        self.faults.setdefault(reason, []).append((row, reason))

    def use(self, row: Row, tokens: np.ndarray, mask: np.ndarray, asked: Conversation | None = None) -> None:
        """Takes a row; of a prompt, with what answers are judged by and who teaches it."""
        self.used.append((row.number, tokens, mask, asked))

    def note(self, sentence: str) -> None:
        """Something to be said."""
        self.notes.append(sentence)

    def done(self) -> Prepared:
        """What was taken, or the refusal."""
        self.bad_rows.sort(key=lambda entry: entry[0].number)
        if self.bad_rows and self.settings.on_bad_row == "refuse":
            row, said = self.bad_rows[0]
            others = len(self.bad_rows) - 1
            more = f"; so are {others:,} more of {self.total:,} rows" if others else ""
            way_out = "" if self.kind == "unread" else " (--on-bad-row skip leaves such rows out)"
            raise UserError(f"{self.path}: {row.place}: {said}{more}{way_out}")
        reasons = {reason: entries for reason, entries in self.faults.items()}
        for row, said in self.bad_rows:
            reasons.setdefault(re.sub(r"\d+", "N", said.reason), []).append((row, str(said)))
        by_count = sorted(reasons.values(), key=len, reverse=True)
        counts = [f"{len(entries):,}: {entries[0][1]} (first: {entries[0][0].place})" for entries in by_count]
        if len(counts) > _REASONS:
            counts = [*counts[:_REASONS], f"{len(counts) - _REASONS} more reasons"]
        if not self.used:
            raise UserError(f"{self.path}: none of {self.total:,} rows can be used: {'; '.join(counts)}")
        if counts:
            left = self.total - len(self.used)
            self.notes.insert(0, f"{left:,} of {self.total:,} rows are left out: {'; '.join(counts)}")
        if self.last_only:
            self.notes.append(
                f"in {self.last_only:,} rows the chat template rewrites earlier answers: of these rows only the last"
                " answer is learned from"
            )
        if self.asked_too:
            self.notes.append(
                f"in {self.asked_too:,} rows the chat template's {{% generation %}} marks hold questions or"
                " instructions, which are learned too"
            )
        if self.headless:
            whose = "learned with the answers" if self.kind == "demonstrations" else "left to the model to write"
            self.notes.append(
                f"in {self.headless:,} rows the chat template writes {self.head[:_HEAD]!r} before an answer and not at"
                f" the end of a prompt (it does not read add_generation_prompt): that is {whose}"
            )
        self.used.sort(key=lambda entry: entry[0])
        numbers, tokens, masks, rows = zip(*self.used, strict=True)
        return Prepared(
            key=self.key,
            tokens=np.concatenate(tokens).astype(np.int32),
            targets=np.concatenate(masks),
            starts=np.concatenate([[0], np.cumsum(list(map(len, tokens)))]).astype(np.int64),
            numbers=np.array(numbers, np.int64),
            truths=[None if row is None else row.ground_truth for row in rows],
            teachers=[None if row is None else row.teacher for row in rows],
            notes=self.notes,
        )

    def said(self, prepared: Prepared) -> Prepared:
        """The same, after its notes were said."""
        for note in prepared.notes:
            self.reporter.say(f"{self.path}: {note}")
        return prepared

    def _has_template(self) -> bool:
        return bool(self.tokenizer.chat_template) or bool(self.settings.template_argument)

    def _read(self, row: Row) -> Conversation:
        if isinstance(row.content, RowError):
            raise row.content
        if self.kind == "demonstrations":
            found = read_demonstration(row.content)
            self.unread |= dict.fromkeys(unread_columns(row.content))
        else:
            found = read_prompt(row.content, truth=self.kind)
        parts = [(f"message {place}", message) for place, message in enumerate(found.messages)]
        for where, part in [*parts, *([] if found.tools is None else [("a tool", found.tools)])]:
            token = next(filter(None, map(self.special.search, _texts(part))), None)
            if token is not None:
                raise RowError(
                    f"{where} holds the special token {token.group()!r}: it was rendered by a template before,"
                    " or would be read as one"
                )
        return found

    def _tokenize(self, rows: Sequence, texts: Sequence, made: dict[int, Demonstration]) -> Iterator[int]:
        """Fills `made` by row number, and yields how many rows were worked off each time."""
        if rows:
            # Where there is no template, this says so.
            format_ = self.format or chat_format(self.tokenizer)
            # A template that is none is known by the first row; it is not the row's fault.
            source = self.settings.chat_template or self.tokenizer.name_or_path
            for tools in (False, True):
                part = [(row, one) for row, one in rows if bool(one.tools) == tools]
                template = format_.with_tools if tools else format_.plain
                following = iter(part)
                shown = self.kind == "demonstrations"
                requests: list[Request] = [
                    (one.messages, one.tools, one.asked) if shown else (one.messages, one.tools) for _, one in part
                ]
                for chunk in render_rows(template, requests, prompts=not shown, source=str(source)):
                    good: list[tuple[Row, Conversation, Rendered]] = []
                    for _, rendered in chunk:
                        row, conversation = next(following)
                        if isinstance(rendered, LostRowsError):
                            raise self._lost([row, *(row for row, _ in following)][: CHUNK - len(chunk) + 1], rendered)
                        if isinstance(rendered, EndlessTemplateError):
                            raise UserError(f"{self.path}: {row.place}: {rendered}")
                        if isinstance(rendered, RowError):
                            self.bad(row, rendered)
                        else:
                            good.append((row, conversation, rendered))
                            self.last_only += rendered.last_only
                            self.asked_too += rendered.asked_too
                            self.headless += bool(rendered.head)
                            self.head = self.head or rendered.head
                    self._put(good, made)
                    yield len(chunk)
        for start in range(0, len(texts), _CHUNK):
            part = texts[start : start + _CHUNK]
            self._put([(row, one, Rendered(one.text, ((0, len(one.text)),))) for row, one in part], made)
            yield len(part)

    def _lost(self, rows: Sequence[Row], error: LostRowsError) -> UserError:
        """The process that renders died; the rows that it had in work are named, none of them as at fault."""
        first, last = rows[0], rows[-1]
        which = first.place
        if last is not first:
            lines = "" if first.line is None else f" (lines {first.line} to {last.line})"
            which = f"rows {first.number} to {last.number}{lines}"
        return UserError(f"{self.path}: {error} with {which} in work; nothing is written, run the same command again")

    def _put(self, good: Sequence[tuple[Row, Conversation, Rendered]], made: dict[int, Demonstration]) -> None:
        encoded = encode_texts(self.tokenizer, [rendered for _, _, rendered in good], self.alphabet)
        for (row, conversation, rendered), one in zip(good, encoded, strict=True):
            try:
                require_written(rendered, one, conversation.messages)
            except RowError as error:
                self.bad(row, error)
            else:
                made[row.number] = one

    def _require_vocabulary(self, row: Row, tokens: np.ndarray) -> None:
        if len(tokens) and int(tokens.max()) >= self.limits.vocabulary:
            token = int(tokens.max())
            raise UserError(
                f"{self.path}: {row.place}: token {token} ({self.tokenizer.convert_ids_to_tokens(token)!r}) is not"
                f" in the model's vocabulary (vocab_size={self.limits.vocabulary}): this tokenizer is not this model's"
            )

    def key_of(self, kind: str) -> str:
        """Of all that the tokens come from, were the rows of this kind."""
        parts = [
            _FORMAT,
            file_digest(self.path),
            kind,
            self.settings.on_bad_row,
            vars(self.limits),
            None if self.format is None else [self.format.plain.source, self.format.with_tools.source],
            None if self.format is None else self.format.plain.variables,
            self.tokenizer.backend_tokenizer.to_str(),
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
