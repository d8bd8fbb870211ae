"""Messages to tokens: the tokenizer, its chat template, and which tokens are the assistant's."""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgeom.data.alphabet import Alphabet, unwritten
from jaxgeom.data.templates import Rendered, RowError, Template, render_demonstration, render_prompt
from jaxgeom.errors import UserError
from jaxgeom.files import refuse_pointer
from jaxgeom.plain_json import TwiceError, read_json_text, utf8_text

_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
_TABLES = ("tokenizer.json", "vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Demonstration:
    """One tokenized conversation.

    Attributes:
        tokens: int32 `[length]`.
        loss_mask: bool `[length]`, true on the assistant's tokens, their end-of-turn token included.
        lost: Begin and end, in characters of the text, of what the tokens do not hold.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    lost: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class ChatFormat:
    """How messages become text: the tokenizer's template, and the one for rows with tools where there is another."""

    plain: Template
    with_tools: Template


def has_tokenizer(directory: str | Path) -> bool:
    """Whether a directory has the file of a tokenizer that `load_tokenizer` reads."""
    return any((Path(directory) / name).is_file() for name in _FILES)


def load_tokenizer(directory: str | Path, *, chat_template: Path | None = None) -> Any:
    """The tokenizer of a Hugging Face directory; nothing is downloaded and no remote code is run.

    Args:
        directory: with whatever `AutoTokenizer` reads: `tokenizer.json`, or `vocab.json` and `merges.txt`.
        chat_template: a file with a Jinja template, in place of the tokenizer's own.

    Returns:
        A `transformers` tokenizer; its `chat_template` is None where there is none.

    Raises:
        UserError: the directory has no tokenizer that can be read, or the template file cannot be.
    """
    from transformers import AutoTokenizer

    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    if not has_tokenizer(directory):
        raise UserError(f"{directory}: no tokenizer.json (nor vocab.json or tokenizer.model)")
    for name in _FILES:
        if (directory / name).is_file():
            refuse_pointer(directory / name)
    for name in _TABLES:
        if (directory / name).is_file():
            _require_once(directory / name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        tokenizer("", add_special_tokens=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    # A damaged file makes the libraries raise anything, a panic of Rust (which is no Exception) among it.
    except BaseException as error:
        raise _unreadable(directory, error) from error
    if not tokenizer.is_fast:
        raise UserError(f"{directory}: its tokenizer does not tell where tokens lie in the text; give a tokenizer.json")
    if chat_template is not None:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise UserError(f"{chat_template}: the chat template cannot be read: {said}") from error
    return tokenizer


def _require_once(path: Path) -> None:
    """Refuses a table that says two things of one name, of which its reader would take one silently."""
    try:
        read_json_text(path.read_text(encoding="utf-8"))
    except TwiceError as error:
        raise UserError(f"{path}: {error}: which is meant cannot be told") from error
    except (OSError, ValueError, RecursionError):  # what else is wrong with it, its reader says
        return


def _unreadable(directory: Path, error: BaseException) -> UserError:
    """What is said of a tokenizer that cannot be read: where `config.json`, which is read too, is at fault, that."""
    from transformers import AutoConfig

    what = f"{directory}: its tokenizer cannot be read"
    try:
        if (directory / "config.json").is_file():
            AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as fault:  # of any kind, as above
        what, error = f"{directory / 'config.json'}: transformers cannot read it", fault
    return UserError(f"{what}: {' '.join(str(error).split())[:200] or type(error).__name__}")


def chat_format(tokenizer: Any, arguments: Sequence[str] = ()) -> ChatFormat:
    """The tokenizer's chat template with its special tokens, and `NAME=VALUE` arguments.

    Args:
        tokenizer: as `load_tokenizer` returns it.
        arguments: such as `enable_thinking=false`; values are JSON, or else text.

    Raises:
        UserError: no template, or an argument that is none or that the template does not read.
    """
    if not tokenizer.chat_template:
        raise UserError(f"{tokenizer.name_or_path}: its tokenizer has no chat template; give one: --chat-template FILE")
    try:
        plain, with_tools = (tokenizer.get_chat_template(tools=tools) for tools in (None, [{}]))
    except (ValueError, TypeError) as error:  # several templates, and none is the default one
        said = str(error).split("\n")[0][:120]
        raise UserError(
            f"{tokenizer.name_or_path}: which of its chat templates is meant? ({said}); give one: --chat-template FILE"
        ) from error
    if not isinstance(plain, str) or not isinstance(with_tools, str):
        raise UserError(f"{tokenizer.name_or_path}: its chat template is no text; give one: --chat-template FILE")
    named = template_arguments(arguments)
    for name in named:
        if not re.search(rf"\b{name}\b", plain + with_tools):
            raise UserError(f"template argument {name!r}: the chat template does not read it")
    special = tokenizer.special_tokens_map.items()
    variables = {k: [str(t) for t in v] if isinstance(v, list | tuple) else str(v) for k, v in special} | named
    return ChatFormat(Template(plain, variables), Template(with_tools, variables))


def encode_prompt(tokenizer: Any, messages: Sequence[dict], *, arguments: Sequence[str] = ()) -> list[int]:
    """Token ids of `messages` followed by the template's generation prompt.

    Args:
        tokenizer: as `load_tokenizer` returns it.
        messages: `{"role", "content"}` each.
        arguments: of the template, `NAME=VALUE` each.

    Returns:
        Token ids.

    Raises:
        UserError: a template that fails on these messages, or leaves one out.
    """
    try:
        rendered = render_prompt(chat_format(tokenizer, arguments).plain, messages)
    except RowError as error:
        raise UserError(str(error)) from error
    return _encode_one(tokenizer, rendered, messages).tokens.tolist()


def encode_demonstration(tokenizer: Any, messages: Sequence[dict], *, arguments: Sequence[str] = ()) -> Demonstration:
    """Token ids of a whole conversation with the mask of the assistant's tokens; see `render_demonstration`.

    Args:
        tokenizer: as `load_tokenizer` returns it.
        messages: `{"role", "content"}` each, at least one of them the assistant's.
        arguments: of the template, `NAME=VALUE` each.

    Returns:
        The tokens and their loss mask.

    Raises:
        UserError: no assistant message, or a template by which the last answer cannot be told from the rest.
    """
    try:
        rendered = render_demonstration(chat_format(tokenizer, arguments).plain, messages)
    except RowError as error:
        raise UserError(str(error)) from error
    return _encode_one(tokenizer, rendered, messages)


def _encode_one(tokenizer: Any, rendered: Rendered, messages: Sequence[dict]) -> Demonstration:
    made = encode_texts(tokenizer, [rendered])[0]
    try:
        require_written(rendered, made, messages)
    except RowError as error:
        raise UserError(str(error)) from error
    return made


def require_written(rendered: Rendered, made: Demonstration, messages: Sequence[dict]) -> None:
    """Refuses tokens that do not hold all that is learned, and all that the messages say.

    What a template writes around them may be lost: it is the same in every row, and where answers are sampled.

    Raises:
        RowError: what is lost is named.
    """
    if not made.lost:
        return
    text, said = rendered.text, "".join(str(value) for message in messages for value in message.values())
    parts = [
        (begin, end)
        for begin, end in made.lost
        if text[begin:end] in said or any(begin < stop and start < end for start, stop in rendered.spans)
    ]
    if parts:
        raise RowError(unwritten(text, parts), reason="the tokenizer cannot write some of it")


def encode_texts(tokenizer: Any, rendered: Sequence[Rendered], alphabet: Alphabet | None = None) -> list[Demonstration]:
    """Tokens of rendered texts, in parallel; the mask is true on tokens that begin inside a span.

    A text is tokenized apart where a span begins within a token (` yes` after a generation prompt that ends in a
    space): what stands before an answer are then the tokens that answers are sampled after, and the answer's first
    letters are learned. `alphabet` is the tokenizer's, for a caller with many texts.
    """
    if not rendered:
        return []
    alphabet = alphabet or Alphabet(tokenizer)
    texts = [one.text for one in rendered]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    made, apart = [], []
    for one, ids, offsets in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        begins = [begin for begin, end in one.spans if begin < end]
        apart.append([b for b in begins if any(start < b < stop for start, stop in offsets)])
        made.append(_masked(one, ids, offsets, alphabet))
    divided = [place for place, cuts in enumerate(apart) if cuts]
    if divided:
        ends = [[0, *sorted(set(apart[place])), len(texts[place])] for place in divided]
        pieces = [
            texts[place][a:b] for place, cuts in zip(divided, ends, strict=True) for a, b in itertools.pairwise(cuts)
        ]
        encoded = tokenizer(pieces, add_special_tokens=False, return_offsets_mapping=True)
        following = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        for place, cuts in zip(divided, ends, strict=True):
            ids, offsets = [], []
            for begin in cuts[:-1]:
                more, where = next(following)
                ids += more
                offsets += [(begin + start, begin + stop) for start, stop in where]
            made[place] = _masked(rendered[place], ids, offsets, alphabet)
    return made


def _masked(one: Rendered, ids: Sequence[int], offsets: Sequence[tuple[int, int]], alphabet: Alphabet) -> Demonstration:
    """Tokens, and which of them begin inside a span."""
    starts = np.array([start for start, _ in offsets], np.int64)
    mask = np.zeros(len(starts), bool)
    for begin, end in one.spans:
        mask |= (starts >= begin) & (starts < end)
    tokens = np.array(ids, np.int32)
    return Demonstration(tokens, mask, alphabet.lost(one.text, tokens, offsets))


def declared_stop_tokens(directory: str | Path) -> tuple[int, ...]:
    """The `eos_token_id` of a directory's `generation_config.json` and `config.json`, those that are there.

    Raises:
        UserError: a file that is no JSON object, or a value that is no token id.
    """
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        path = Path(directory) / name
        if not path.is_file():
            continue
        try:
            content = read_json_text(utf8_text(path.read_bytes()))
        except TwiceError as error:
            raise UserError(f"{path}: {error}: which is meant cannot be told") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON: {error}") from error
        if not isinstance(content, dict):
            raise UserError(f"{path}: holds no JSON object")
        value = content.get("eos_token_id")
        several = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in several):
            raise UserError(f"{path}: eos_token_id={value!r} is no token id")
        found |= set(several)
    return tuple(sorted(found))


def stop_tokens(tokenizer: Any, declared: Iterable[int] = ()) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's end of sequence, ChatML's end of turn where it exists, and `declared`.

    Args:
        tokenizer: as `load_tokenizer` returns it.
        declared: by the model's configuration, see `declared_stop_tokens`.
    """
    stops = {tokenizer.eos_token_id, tokenizer.get_vocab().get("<|im_end|>"), *declared}
    return tuple(sorted(token for token in stops if token is not None and token >= 0))


def pad_token(tokenizer: Any, vocab_size: int | None = None) -> int:
    """The padding token, else the end of sequence, else 0: padding is masked, and any row of the embedding will do."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None and (vocab_size is None or token < vocab_size):
            return token
    return 0


def template_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Values by name of `NAME=VALUE` arguments; values are JSON, or else text.

    Raises:
        UserError: one that is none, or a name that the rows give.
    """
    made: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"template argument {argument!r}: must be NAME=VALUE")
        if name in ("messages", "tools", "documents", "add_generation_prompt"):
            raise UserError(f"template argument {argument!r}: {name} comes from the rows")
        # `False` is what people write who know it from Python; as text it would be true.
        word = {"true": "true", "false": "false", "none": "null"}.get(text.lower(), text)
        try:
            made[name] = json.loads(word, parse_constant=_no_number)
        except (ValueError, RecursionError):
            made[name] = text
    return made


def with_defaults(template: str, named: Mapping[str, Any]) -> str:
    """A chat template that has arguments of its own, which a caller's go before.

    Args:
        template: Jinja source, for blocks that are trimmed, as those of chat templates are.
        named: values by name.

    >>> with_defaults("{{ a }}", {"a": None})
    '{%- if a is not defined %}{%- set a = none %}{%- endif %}\\n{{ a }}'
    """
    sets = (f"{{%- if {k} is not defined %}}{{%- set {k} = {_literal(v)} %}}{{%- endif %}}" for k, v in named.items())
    front = "".join(sets)
    return template if not front or template.startswith(front) else f"{front}\n{template}"


def _literal(value: Any) -> str:
    """A JSON value in Jinja's words."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _no_number(word: str) -> Any:
    raise ValueError(word)
