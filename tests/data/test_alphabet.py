"""Text that a tokenizer cannot write: found for every kind of model, and never where a normalizer changes it."""

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxgeom.data import chat
from jaxgeom.data.templates import Rendered
from jaxgeom.errors import UserError

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def numbered(words):
    return {word: number for number, word in enumerate(words)}


def made(model, normalizer=None, divider=None, decoder=None, **options):
    backend = Tokenizer(model)
    if normalizer is not None:
        backend.normalizer = normalizer
    if divider is not None:
        backend.pre_tokenizer = divider
    if decoder is not None:
        backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **options)


def lost(tokenizer, text):
    (one,) = chat.encode_texts(tokenizer, [Rendered(text, ((0, len(text)),))])
    return [text[begin:end] for begin, end in one.lost]


def byte_level(normalizer=None, letters=BYTES, **options):
    model = models.BPE(vocab=numbered(letters), merges=[])
    return made(model, normalizer, pre_tokenizers.ByteLevel(**options), decoders.ByteLevel())


HARMLESS = (
    None,
    normalizers.NFC(),
    normalizers.NFD(),
    normalizers.NFKC(),
    normalizers.Strip(),
    normalizers.Lowercase(),
    normalizers.Nmt(),
    normalizers.BertNormalizer(),
    normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
)


@pytest.mark.parametrize("normalizer", HARMLESS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("prefix", [True, False])
def test_bytes_write_everything_and_normalizers_are_no_loss(normalizer, prefix):
    # A letter with its accent apart, a ligature, Hangul whole and in parts, joiners, line ends, fullwidth.
    text = " He\u0301llo  ﬁ 한국 \u1112\u1161\u11ab \u200d\ufe0f🙂\r\n\t ½ Ａ "
    assert lost(byte_level(normalizer, add_prefix_space=prefix), text) == []


@pytest.mark.parametrize("seed", range(4))
def test_what_decoding_does_not_give_back_is_lost(seed):
    """Against what decoding the tokens gives back, for models that have some of the letters."""
    generator = np.random.default_rng(seed)
    letters = np.array(list("abcdefgh ijk\nlm\tnéжщ中🙂"))
    some = [str(letter) for letter in generator.permutation(letters)[:14]]
    bytes_of = sorted({byte for letter in some for byte in byte_level_form(letter)})
    tokenizers = {
        "letters": made(models.BPE(vocab=numbered(some), merges=[]), decoder=decoders.Fuse()),
        "bytes": byte_level(letters=bytes_of, add_prefix_space=False),
    }
    for tokenizer in tokenizers.values():
        for _ in range(40):
            text = "".join(generator.choice(letters, 6))
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert (lost(tokenizer, text) == []) == (tokenizer.decode(ids) == text), text
    kept = "".join(letter for letter in letters if letter in some)
    assert lost(tokenizers["letters"], "".join(letters)) == [letter for letter in letters if letter not in some]
    assert lost(tokenizers["letters"], kept) == []


def byte_level_form(letter):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(letter)[0][0]


UNKNOWN = {"[UNK]": 0, "ab": 1, "##c": 2, "a": 3}
UNIGRAM = [("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0), ("▁", -3.0)]


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [
        (made(models.BPE(vocab=numbered("ab▁"), merges=[]), None, pre_tokenizers.Metaspace()), "qab b\n", ["q", "\n"]),
        (
            made(
                models.BPE(vocab=numbered("ab▁"), merges=[]),
                normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
            ),
            "qab b\n",
            ["q", "\n"],
        ),
        (
            made(models.BPE(vocab=numbered(["<u>", "a"]), merges=[], unk_token="<u>", fuse_unk=True)),
            "aqqa",
            ["q", "q"],
        ),
        (made(models.BPE(vocab=numbered(["a", "<0x71>"]), merges=[], byte_fallback=True)), "aqr", ["r"]),
        (made(models.BPE(vocab=numbered(["a", "b</w>"]), merges=[], end_of_word_suffix="</w>")), "ab", []),
        (
            made(
                models.WordPiece(UNKNOWN, unk_token="[UNK]"),
                normalizers.BertNormalizer(),
                pre_tokenizers.BertPreTokenizer(),
            ),
            "ABC abq\n ab",
            ["abq"],
        ),
        (made(models.WordLevel(UNKNOWN, unk_token="[UNK]"), None, pre_tokenizers.WhitespaceSplit()), "ab cd", ["cd"]),
        (made(models.Unigram(UNIGRAM, 0, False), normalizers.Nmt(), pre_tokenizers.Metaspace()), "ab b q", ["q"]),
        (byte_level(normalizers.Replace("x", "")), "axb", ["x"]),
        (
            made(
                models.BPE(vocab=numbered(BYTES), merges=[]),
                None,
                pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\d"), "removed"), pre_tokenizers.ByteLevel()]),
            ),
            "a1b",
            ["1"],
        ),
    ],
)
def test_every_kind_of_model(tokenizer, text, expected):
    assert lost(tokenizer, text) == expected


def test_a_token_that_is_written_out_is_itself():
    tokenizer = made(models.BPE(vocab=numbered(["<u>", "a"]), merges=[], unk_token="<u>"), unk_token="<u>")
    assert lost(tokenizer, "a<u>a") == [] and lost(tokenizer, "aba") == ["b"]
    tokenizer = made(models.BPE(vocab=numbered("a"), merges=[]), additional_special_tokens=["<|中|>"])
    assert lost(tokenizer, "a<|中|>a中") == ["中"]


def test_one_conversation_is_refused_too(tmp_path):
    from jaxgeom.data.character_tokenizer import write_character_tokenizer

    write_character_tokenizer(tmp_path)
    tokenizer = chat.load_tokenizer(tmp_path)
    messages = [{"role": "user", "content": "été"}, {"role": "assistant", "content": "1"}]
    for encode, given in ((chat.encode_demonstration, messages), (chat.encode_prompt, messages[:1])):
        with pytest.raises(UserError, match=r"^the tokenizer cannot write 'é'$"):
            encode(tokenizer, given)
