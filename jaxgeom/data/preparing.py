"""All rows of a file read, rendered and tokenized once, before anything is written.

A row that cannot be used is refused with its number, or left out and counted. Several processes may each make a share
of the rows: all of them then have what one would have made of all, to the last bit and word.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxgeom import processes
from jaxgeom.data.alphabet import Alphabet
from jaxgeom.data.chat import ChatFormat, Demonstration, chat_format, encode_texts, require_written
from jaxgeom.data.conversations import Conversation, Need, read_demonstration, read_prompt, unread_columns
from jaxgeom.data.prepared import Limits, Prepared, recall
from jaxgeom.data.rendering import CHUNK, EndlessTemplateError, LostRowsError, Request, render_rows
from jaxgeom.data.row_settings import RowSettings
from jaxgeom.data.rows import Row, file_digest, read_row_file
from jaxgeom.data.shares import Asked, Share, concatenated, count_row, of_all
from jaxgeom.data.templates import Rendered, RowError, Template
from jaxgeom.errors import UserError, listed
from jaxgeom.processes import ShareError
from jaxgeom.progress import Reporter

_FORMAT = 5  # of the rules by which rows become tokens
_SHOWN_FROM = 5_000  # rows; fewer take seconds
_CHUNK = 256
_REASONS = 8
_HEAD = 60  # characters of what a template writes, in a note
_RENDERING = {False: 0, True: 1}  # the order of the work: rows without tools, with tools
_VOCABULARY = 2  # then the tokens of all


def prepare_demonstrations(
    path: Path, tokenizer: Any, *, settings: RowSettings, limits: Limits, stops: Sequence[int] = (),
    kept: Path | None = None, reporter: Reporter | None = None, by_shares: bool = False,
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
        by_shares: whether all processes call this together, for each to make a share of the rows.

    Raises:
        UserError: a row that cannot be used (unless they are left out), a token outside the vocabulary, or no row that
            teaches anything; processes whose files, tokenizers or templates differ.
    """
    work = _begun(path, tokenizer, settings, limits, "demonstrations", reporter, by_shares)
    found = work.recalled(kept, work.key)
    if found is None:
        limit = min(limits.context, limits.max_length or limits.context)
        share = work.made(lambda: _take_demonstrations(work, limit, stops))
        counts = share.counts
        if counts["cut"]:
            lost = f"{counts['lost']:,} tokens of their answers"
            work.note(f"{counts['cut']:,} rows are cut at {limit:,} tokens and lose {lost}")
        if counts["goes on"] and not counts["asked too"]:
            work.note(
                f"in {counts['goes on']:,} rows the chat template goes on after the token that ends the answer, and"
                " that is learned too: what is sampled ends before it"
            )
        if share.unread:
            work.note(f"columns that are not read: {listed([name[:40] for name in share.unread], 8)}")
        if stops and not counts["ended"]:
            work.note("no answer has a token that ends it: the model is not taught to stop")
        found = work.done()
    return work.said(found)


def prepare_prompts(
    path: Path, tokenizer: Any, *, settings: RowSettings, limits: Limits, truth: Need = "needed",
    kept: Path | None = None, reporter: Reporter | None = None, by_shares: bool = False,
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
        by_shares: whether all processes call this together, for each to make a share of the rows.

    Raises:
        UserError: a row that cannot be used (unless they are left out), a token outside the vocabulary, or none left;
            processes whose files, tokenizers or templates differ.
    """
    work = _begun(path, tokenizer, settings, limits, truth, reporter, by_shares)
    # Rows that all have their answer are the same rows whether it is needed or not, and are kept once.
    answered = work.key_of("needed") if truth == "optional" and settings.on_bad_row == "refuse" else work.key
    found = work.recalled(kept, answered, work.key)
    if found is None:
        work.made(lambda: _take_prompts(work))
        found = work.done()
        if None not in found.truths:
            found = dataclasses.replace(found, key=answered)
    return work.said(found)


def _begun(
    path: Path, tokenizer: Any, settings: RowSettings, limits: Limits, kind: Need | Literal["demonstrations"],
    reporter: Reporter | None, by_shares: bool,
) -> "_Work":  # fmt: skip
    """The work on a file before its first row; processes that would make other tokens of it are refused."""
    by_shares = by_shares and processes.count() > 1
    together = processes.together if by_shares else processes.by_itself
    work = together(lambda: _Work(path, tokenizer, settings, limits, kind, reporter, by_shares))
    if by_shares:
        processes.require_same({"rows": {path.name: work.sources()}})
    return work


def _take_demonstrations(work: "_Work", limit: int, stops: Sequence[int]) -> None:
    """Uses, leaves out or calls bad every demonstration of this process's share, and counts what is to be said."""
    counts = work.share.counts
    for row, conversation, encoded in work.encoded():
        tokens, mask = encoded.tokens, encoded.loss_mask
        if not mask[1:].any():  # the first token is predicted from nothing
            work.bad(row, RowError("has no token to learn from"))
            continue
        if mask[1:limit].any():
            work.share.use(row, tokens[:limit], mask[:limit], Asked())
            counts["cut"] += len(tokens) > limit
            counts["lost"] += int(mask[limit:].sum())
        else:
            work.leave_out(row, f"no answer within {limit:,} tokens (--max-length, or the model's context)")
        ends = np.isin(tokens, stops) & mask
        counts["ended"] += conversation.text is not None or bool(ends[:limit].any())
        counts["goes on"] += conversation.text is None and work.goes_on(tokens, mask, ends)


def _take_prompts(work: "_Work") -> None:
    """Uses, leaves out or calls bad every prompt of this process's share."""
    limits = work.limits
    for row, conversation, encoded in work.encoded():
        size = len(encoded.tokens)
        if limits.max_prompt is not None and size > limits.max_prompt:
            work.leave_out(row, f"longer than {limits.max_prompt:,} tokens (--max-prompt-length)")
        elif size + limits.new_tokens > limits.context:
            work.bad(
                row,
                RowError(
                    f"its {size} tokens and max_new_tokens={limits.new_tokens} do not fit into the model's context of"
                    f" {limits.context}; {_room(limits, size)}"
                ),
            )
        else:
            asked = Asked(conversation.ground_truth, conversation.teacher)
            work.share.use(row, encoded.tokens, encoded.loss_mask, asked)


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
    """How a prompt would fit, or how a run goes on without it, by options that the command has."""
    left, kept = limits.context - size, limits.context - limits.new_tokens
    if not limits.has_options:
        return f"a prompt of at most {kept} would" if kept > 0 else "no prompt does"
    ways = [f"--max-new-tokens {left} would"] if left > 0 else ["the prompt alone fills it"]
    ways += [f"--max-prompt-length {kept} leaves out such rows"] if kept > 0 else []
    return "; ".join(ways)


class _Work:
    """One file on its way: what is used, what is bad, what is left out."""

    def __init__(
        self, path: Path, tokenizer: Any, settings: RowSettings, limits: Limits,
        kind: Need | Literal["demonstrations"], reporter: Reporter | None, by_shares: bool,
    ):  # fmt: skip
        self.path, self.tokenizer, self.settings, self.limits = path, tokenizer, settings, limits
        self.kind: Need | Literal["demonstrations"] = kind
        self.reporter = reporter or Reporter(quiet=True)
        self.by_shares = by_shares
        self.file = file_digest(path)
        self.format: ChatFormat | None = (
            chat_format(tokenizer, settings.template_argument) if self._has_template() else None
        )
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self.alphabet = Alphabet(tokenizer)
        self.key = self.key_of(kind)
        self.total = 0
        self.share = Share()
        self.notes: list[str] = []

    def recalled(self, kept: Path | None, *keys: str) -> Prepared | None:
        """What was kept under the first of the keys under which something was; where that is damaged it is said.

        Of several processes all have it, and the same, or None of them.
        """
        found = None
        for key in keys:
            was_there = kept is not None and (kept / f"{key}.npz").is_file()
            found = recall(kept, key)
            if was_there and found is None:
                self.reporter.say(
                    f"{self.path}: the kept rows {kept}/{key}.npz are not as they were written: made anew"
                )
            if found is not None:
                break
        if not self.by_shares:
            return found
        digests = processes.exchanged(None if found is None else found.digest, at="kept rows")
        without = [str(index) for index, digest in enumerate(digests) if digest is None]
        if len(set(digests)) > 1:
            which = f"process {', '.join(without)} does not have" if without else "the processes do not have the same"
            self.reporter.say(f"{self.path}: {which} kept rows of it: made anew")
            return None
        return found

    def made(self, take: Callable[[], None]) -> Share:
        """What all rows have come to; of several processes each takes its share."""
        if self.by_shares:
            processes.together(take)
            self.share = of_all(self.share)
        else:
            take()
        return self.share

    def encoded(self) -> Iterator[tuple[Row, Conversation, Demonstration]]:
        """Row, conversation and tokens of every row that can be read and rendered; the others are counted.

        Of several processes each has its share of the rows.
        """
        rows = read_row_file(self.path)[: self.limits.rows]
        self.total = len(rows)
        if self.by_shares:
            if file_digest(self.path) != self.file:  # shares of different files would be mixed
                raise UserError(f"{self.path}: was changed while it was read; run the same command again")
            rows = rows[processes.share_of(self.total)]
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
        count_row(self.share.bad, re.sub(r"\d+", "N", error.reason), row, str(error))

    def leave_out(self, row: Row, reason: str) -> None:
        """Counts a row that the settings leave out."""
        count_row(self.share.left_out, reason, row, reason)

    def note(self, sentence: str) -> None:
        """Something to be said."""
        self.notes.append(sentence)

    def done(self) -> Prepared:
        """What was taken, or the refusal."""
        share, counts = self.share, self.share.counts
        bad = sorted(share.bad.values(), key=lambda reason: reason.number)
        if bad and self.settings.on_bad_row == "refuse":
            others = sum(reason.count for reason in bad) - 1
            more = f"; so are {others:,} more of {self.total:,} rows" if others else ""
            way_out = "" if self.kind == "unread" else " (--on-bad-row skip leaves such rows out)"
            raise UserError(f"{self.path}: {bad[0].place}: {bad[0].said}{more}{way_out}")
        left_out = sorted(share.left_out.values(), key=lambda reason: reason.number)
        by_count = sorted([*left_out, *bad], key=lambda reason: reason.count, reverse=True)
        reasons = [f"{one.count:,}: {one.said} (first: {one.place})" for one in by_count]
        if len(reasons) > _REASONS:
            reasons = [*reasons[:_REASONS], f"{len(reasons) - _REASONS} more reasons"]
        if not share.numbers:
            raise UserError(f"{self.path}: none of {self.total:,} rows can be used: {'; '.join(reasons)}")
        if reasons:
            left = self.total - len(share.numbers)
            self.notes.insert(0, f"{left:,} of {self.total:,} rows are left out: {'; '.join(reasons)}")
        if counts["last only"]:
            self.notes.append(
                f"in {counts['last only']:,} rows the chat template rewrites earlier answers: of these rows only the"
                " last answer is learned from"
            )
        if counts["asked too"]:
            self.notes.append(
                f"in {counts['asked too']:,} rows the chat template's {{% generation %}} marks hold questions or"
                " instructions, which are learned too"
            )
        if counts["headless"]:
            head = share.heads.get(False) or share.heads[True]
            whose = "learned with the answers" if self.kind == "demonstrations" else "left to the model to write"
            self.notes.append(
                f"in {counts['headless']:,} rows the chat template writes {head[:_HEAD]!r} before an answer and not at"
                f" the end of a prompt (it does not read add_generation_prompt): that is {whose}"
            )
        return Prepared(
            key=self.key,
            tokens=concatenated(share.tokens, np.int32),
            targets=concatenated(share.targets, bool),
            starts=np.concatenate([[0], np.cumsum(share.lengths)]).astype(np.int64),
            numbers=np.array(share.numbers, np.int64),
            truths=[asked.truth for asked in share.asked],
            teachers=[asked.teacher for asked in share.asked],
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
            self.share.unread |= dict.fromkeys(unread_columns(row.content))
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
            format_ = self._required_format()
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
                for chunk in self._rendered(template, requests, str(source), tools):
                    good: list[tuple[Row, Conversation, Rendered]] = []
                    for _, rendered in chunk:
                        row, conversation = next(following)
                        if isinstance(rendered, LostRowsError):
                            raise self._lost([row, *(row for row, _ in following)][: CHUNK - len(chunk) + 1], rendered)
                        if isinstance(rendered, EndlessTemplateError):
                            raise ShareError(f"{self.path}: {row.place}: {rendered}", _RENDERING[tools])
                        if isinstance(rendered, RowError):
                            self.bad(row, rendered)
                        else:
                            good.append((row, conversation, rendered))
                            self._count(rendered, tools)
                    self._put(good, made)
                    yield len(chunk)
        for start in range(0, len(texts), _CHUNK):
            part = texts[start : start + _CHUNK]
            self._put([(row, one, Rendered(one.text, ((0, len(one.text)),))) for row, one in part], made)
            yield len(part)

    def _required_format(self) -> ChatFormat:
        try:
            return self.format or chat_format(self.tokenizer)
        except UserError as error:  # there is no template
            raise ShareError(str(error), _RENDERING[False]) from error

    def _rendered(self, template: Template, requests: Sequence[Request], source: str, tools: bool) -> Iterator[list]:
        """See `render_rows`; that a template is not usable is said at its first row, whoever has that."""
        try:
            yield from render_rows(template, requests, prompts=self.kind != "demonstrations", source=source)
        except UserError as error:
            raise ShareError(str(error), _RENDERING[tools]) from error

    def _count(self, rendered: Rendered, tools: bool) -> None:
        """Counts what is odd in how a row was rendered."""
        counts = self.share.counts
        counts["last only"] += rendered.last_only
        counts["asked too"] += rendered.asked_too
        if rendered.head:
            counts["headless"] += 1
            self.share.heads.setdefault(tools, rendered.head)

    def _lost(self, rows: Sequence[Row], error: LostRowsError) -> UserError:
        """The process that renders died; the rows that it had in work are named, none of them as at fault."""
        first, last = rows[0], rows[-1]
        which = first.place
        if last is not first:
            lines = "" if first.line is None else f" (lines {first.line} to {last.line})"
            which = f"rows {first.number} to {last.number}{lines}"
        lost = UserError(f"{self.path}: {error} with {which} in work; nothing is written, run the same command again")
        lost.status = 1  # no mistake of the user's, as far as is known: a launcher starts such a command again
        return lost

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
            raise ShareError(
                f"{self.path}: {row.place}: token {token} ({self.tokenizer.convert_ids_to_tokens(token)!r}) is not"
                f" in the model's vocabulary (vocab_size={self.limits.vocabulary}): this tokenizer is not this model's",
                _VOCABULARY,
            )

    def key_of(self, kind: str) -> str:
        """Of all that the tokens come from, were the rows of this kind."""
        limits = vars(self.limits).copy()
        del limits["has_options"]  # words of an error
        parts = [
            _FORMAT,
            self.file,
            kind,
            self.settings.on_bad_row,
            limits,
            None if self.format is None else [self.format.plain.source, self.format.with_tools.source],
            None if self.format is None else self.format.plain.variables,
            self.tokenizer.backend_tokenizer.to_str(),
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def sources(self) -> dict[str, Any]:
        """All that the tokens come from, to be compared between processes: JSON, of long texts their digests."""
        format_ = self.format
        return {
            "file": self.file,
            "template": None if format_ is None else _short([format_.plain.source, format_.with_tools.source]),
            "variables": None if format_ is None else format_.plain.variables,
            "tokenizer": _short(self.tokenizer.backend_tokenizer.to_str()),
            "key": self.key,
        }


def _short(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
