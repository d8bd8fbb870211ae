"""What of a text a tokenizer cannot write: it becomes the token for the unknown, or nothing at all."""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxgeom.errors import listed

_SHOWN = 5  # pieces in a message
_LONGEST = 20  # characters of a piece in a message
_PASSED_OVER = ("Z", "C", "M")  # Unicode's separators, controls and formats, and marks, which normalizers may remove


class Alphabet:
    """What one tokenizer can write.

    What its normalizer makes of a text (composed, in lower case, without its accents) is written. White space, controls
    and combining marks that it removes are no loss either; letters are, and so is all that its model has no token for.
    """

    def __init__(self, tokenizer: Any):
        backend = tokenizer.backend_tokenizer
        self._normalizer, self._divider, self._model = backend.normalizer, backend.pre_tokenizer, backend.model
        self._added = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items()}
        named = getattr(self._model, "unk_token", None)
        found = {tokenizer.unk_token_id, None if named is None else backend.token_to_id(named)}
        if not hasattr(self._model, "unk_token"):  # of Unigram, which tells it in its state alone
            found.add(json.loads(self._model.__getstate__()).get("unk_id"))
        self._unknown = {token: backend.id_to_token(token) for token in found if token is not None}
        # A model with a token for the unknown says so by it, of words as a whole. This one leaves characters out.
        self._drops = type(self._model).__name__ == "BPE" and named is None
        self._by_words = type(self._model).__name__.startswith("Word")
        self._known: set[str] = set()
        self._lost: set[str] = set()

    def lost(self, text: str, ids: np.ndarray, offsets: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """Parts of a text that its tokens do not hold.

        Args:
            text: what was tokenized.
            ids: int `[length]`, its tokens.
            offsets: begin and end of each in `text`.

        Returns:
            Begin and end of each part, in characters, ascending: a character each, but a word where the model knows
            words alone.
        """
        parts = []
        for token, name in self._unknown.items():
            for place in np.flatnonzero(ids == token).tolist():
                begin, end = offsets[place]
                if text[begin:end].strip() != name:  # written out it is itself
                    parts += [(begin, end)] if self._by_words else [(p, p + 1) for p in range(begin, end)]
        unsure = set(text) - self._known
        if unsure:
            self._look_at(unsure - self._lost)
            missing = unsure & self._lost
            if missing:
                parts += self._places(text, missing, ids, offsets)
        return tuple(sorted(parts))

    def _look_at(self, characters: set[str]) -> None:
        for character in characters:
            (self._known if self._is_kept(character) else self._lost).add(character)

    def _is_kept(self, character: str) -> bool:
        """Whether a character comes through: its text by itself, to what the model makes of it."""
        normal = character if self._normalizer is None else self._normalizer.normalize_str(character)
        pieces = [normal] if self._divider is None else [p for p, _ in self._divider.pre_tokenize_str(normal)]
        written = "".join(pieces)
        if not written.strip() and not unicodedata.category(character).startswith(_PASSED_OVER):
            return False
        # The mark of a word's beginning that is put before it is not the character's.
        put_before = set() if character.isspace() else {"▁"} - {character}
        return not self._drops or all(map(self._has, set(written) - put_before))

    def _has(self, letter: str) -> bool:
        """Whether the model has a letter, by itself, within a word or at the end of one."""
        before, after = self._model.continuing_subword_prefix or "", self._model.end_of_word_suffix or ""
        if self._model.tokenize(letter):  # its bytes may stand for it
            return True
        return any(self._model.token_to_id(form) is not None for form in (before + letter, letter + after))

    def _places(
        self, text: str, characters: set[str], ids: np.ndarray, offsets: Sequence[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Where these stand, but for those within an added token, which is written whole."""
        whole: set[int] = set()
        for token, (begin, end) in zip(ids.tolist(), offsets, strict=True):
            if token in self._added and text[begin:end].strip() == self._added[token]:
                whole |= set(range(begin, end))
        return [(p, p + 1) for p, character in enumerate(text) if character in characters and p not in whole]


def unwritten(text: str, parts: Iterable[tuple[int, int]]) -> str:
    """A sentence about the parts of a text that a tokenizer cannot write.

    >>> unwritten("aéèbéc", [(1, 2), (2, 3), (4, 5)])
    "the tokenizer cannot write 'éè', 'é'"
    """
    runs: list[tuple[int, int]] = []
    for begin, end in parts:
        if runs and runs[-1][1] == begin:
            begin = runs.pop()[0]
        runs.append((begin, end))
    pieces = [text[begin:end] for begin, end in runs]
    shown = [repr(piece if len(piece) <= _LONGEST else f"{piece[:_LONGEST]}…") for piece in dict.fromkeys(pieces)]
    return f"the tokenizer cannot write {listed(shown, _SHOWN)}"
