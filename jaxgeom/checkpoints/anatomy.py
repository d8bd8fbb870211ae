"""Which of a checkpoint's parameters are the text model's and which are another part's, by where its layers lie.

The text model is what shares the stem of its embedding and its layers (`model.language_model.embed_tokens`,
`model.language_model.layers.0…`), and the head above it. Whatever else is stored is a tower, named by the first word of
its name that is not the text model's: nothing depends on how a family calls its parts.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from jaxgeom.checkpoints.names import key_of, without_inner_wrappers
from jaxgeom.errors import UserError

_LAYERS = ("layers", "layer", "h", "blocks", "block")
_STACK = re.compile(r"^((?:[^.]+\.)*?)(?!\d+\.)([^.]+)\.\d+\.")
_EMBEDDING = re.compile(
    r"^((?:[^.]+\.)*?)((?:\w*embeddings?\.)?"
    r"(?:embed_tokens|tok_embeddings|token_embeddings?|word_embeddings|embed_in|wte|shared|embeddings?))\.weight$"
)
_HEADS = re.compile(r"^((?:[^.]+\.)*?)(lm_head|output|output_layer|embed_out|head)\.(?:weight|bias)$")
_BESIDE = re.compile(r"(?!.*patch)(?:\w*embed\w*|wte|wpe|\w*norm\w*|ln_\w+)\.(?:weight|bias)", re.IGNORECASE)
_FURTHER = re.compile(r"(?:eh_proj|shared_head|enorm|hnorm)\.")
_EXPERT = re.compile(r"(.*\.experts\.\d+\.)(w[123])(\.\w+)$")
_EXPERT_WORDS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


@runtime_checkable
class Sized(Protocol):
    """What has a number of entries: a tensor."""

    @property
    def size(self) -> int: ...


class Place(NamedTuple):
    """Where a parameter belongs.

    Attributes:
        tower: the part beside the text model, None for the text model's own.
        key: its name without what stands before the text model, or the tower.
    """

    tower: str | None
    key: str


class _Text(NamedTuple):
    """The text model: what stands before its layers, before its embedding (the same, or above), its layers' word, and
    what its embedding is called, or what holds that one."""

    stem: str
    top: str
    word: str | None
    embedding: str | None


def places_of(sizes: Mapping[str, int]) -> dict[str, Place]:
    """Where every parameter of a checkpoint belongs.

    Args:
        sizes: the number of entries by stored name; of several models that have an embedding and layers the largest is
            the text model.

    Returns:
        A place for each name. Without layers or an embedding there is nothing to tell by: all is the text model's.

    >>> names = ["llm.embed_tokens.weight", "llm.layers.0.mlp.up_proj.weight", "llm.lm_head.weight", "vpm.pos.weight"]
    >>> [tuple(place) for place in places_of(dict.fromkeys(names, 1)).values()]  # doctest: +NORMALIZE_WHITESPACE
    [(None, 'embed_tokens.weight'), (None, 'layers.0.mlp.up_proj.weight'), (None, 'lm_head.weight'),
     ('vpm', 'vpm.pos.weight')]
    """
    bare = {name: without_inner_wrappers(name) for name in sizes}
    text = _text_of({bare[name]: size for name, size in sizes.items()})
    if text is None:
        return {name: Place(None, key_of(name)) for name in sizes}
    further = {layer for name in bare.values() if (layer := _further_layer(name, text)) is not None}
    return {name: _place(bare[name], text, further) for name in sizes}


def by_key(tensors: Mapping[str, Sized], where: str) -> dict[str, str]:
    """Stored names by their key.

    Args:
        tensors: of one checkpoint.
        where: its name.

    Raises:
        UserError: two names have one key, so that they cannot be told apart.
    """
    found: dict[str, str] = {}
    for name, place in places_of({name: tensor.size for name, tensor in tensors.items()}).items():
        other = found.setdefault(place.key, name)
        if other != name:
            raise UserError(f"{where}: tensors {other!r} and {name!r} are one and the same without their prefixes")
    return found


def _text_of(sizes: Mapping[str, int]) -> _Text | None:
    stacks: Counter[tuple[str, str]] = Counter()
    embeddings: dict[str, tuple[int, str]] = {}
    for name, size in sizes.items():
        if found := _STACK.match(name):
            stacks[found.group(1), found.group(2)] += size
        if found := _EMBEDDING.match(name):
            embeddings[found.group(1)] = size, found.group(2).split(".")[0]
    ranked = []
    for (stem, word), size in stacks.items():
        top = max((top for top in embeddings if stem.startswith(top)), key=len, default=None)
        # An embedding of its own says more than one far above; a usual word for layers more than any other list.
        distance = len(stem) - len(top or "")
        rank = (top is not None, word in _LAYERS, key_of(stem) == "", -distance, size)
        ranked.append((rank, _Text(stem, stem if top is None else top, word, embeddings.get(top or "", (0, None))[1])))
    if ranked:
        (has_embedding, usual, *_), text = max(ranked, key=lambda pair: pair[0])
        if has_embedding or usual:
            return text
    if embeddings:
        top = max(embeddings, key=lambda stem: (key_of(stem) == "", embeddings[stem][0]))
        return _Text(top, top, None, embeddings[top][1])
    return None


def _place(name: str, text: _Text, further: Collection[str]) -> Place:
    head = _HEADS.match(name)
    if head is not None and text.stem.startswith(head.group(1)):
        return Place(None, name.removeprefix(head.group(1)))
    if text.word is not None and name.startswith(f"{text.stem}{text.word}."):
        key = name.removeprefix(text.stem)
        layer = key.split(".")[1]
        return Place(f"{text.word}.{layer}" if layer in further else None, _usual_experts(key))
    for above in (text.stem, text.top):
        key = name.removeprefix(above)
        if name.startswith(above) and (_BESIDE.fullmatch(key) or key.split(".")[0] == text.embedding):
            return Place(None, key)
    words, stem, shared = name.split("."), text.stem.split(".")[:-1], 0
    while shared < min(len(words) - 1, len(stem)) and words[shared] == stem[shared]:
        shared += 1
    return Place(words[shared], ".".join(words[shared:]))


def _usual_experts(key: str) -> str:
    """Mixtral's names of a mixture of experts in those that most decoders share."""
    key = key.replace(".block_sparse_moe.", ".mlp.")
    found = _EXPERT.match(key)
    return f"{found.group(1)}{_EXPERT_WORDS[found.group(2)]}{found.group(3)}" if found else key


def _further_layer(name: str, text: _Text) -> str | None:
    """The number of a layer that predicts a further token (DeepSeek and GLM store it behind the others)."""
    if text.word is None or not name.startswith(f"{text.stem}{text.word}."):
        return None
    number, _, inner = name.removeprefix(f"{text.stem}{text.word}.").partition(".")
    return number if _FURTHER.match(inner) else None
