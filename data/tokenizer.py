"""Tokenizers of text corpora: a byte-level BPE trained on the corpus, or an existing tokenizer.json."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.paths import expanded
from data.config import DataError, one_line
from data.tokenizer_process import call

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.json"
TRAINED = "bpe"
HUB = "hub:"
# End-of-text tokens in order of preference: ours, T5's and Llama's, GPT-2's, Llama 3's.
EOS = ("<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>")
# 256 bytes and the end-of-text token.
MIN_VOCAB_SIZE = 256 + 1
# Characters of text from which BPE merges are learned. More takes hours and changes few merges.
MAX_TRAINING_CHARACTERS = 200_000_000
# Longest word from which merges are learned as a whole, in characters. Only text without spaces has longer ones.
LONGEST_WORD = 1000
RUN = re.compile(rf"\S{{{LONGEST_WORD + 1}}}|\s{{{LONGEST_WORD + 1}}}")

UNKNOWN = "pieces of text became the unknown token"
LOST = "characters lost, for which the tokenizer has no token"
REPLACED = "characters replaced by the tokenizer's normalizer"
SPELLED = "end-of-text tokens in the text spelled out"


def fingerprint(choice: str) -> dict[str, str]:
    """Returns the hash of a tokenizer.json given by path, so that the content counts and not the path."""
    if choice == TRAINED or choice.startswith(HUB):
        return {}
    content = _existing(choice).read_bytes()
    # Earlier, an end-of-text token that is an ordinary added token was found in the text.
    later = ", literal" if _has_ordinary_eos(content) else ""
    return {"tokenizer": hashlib.sha256(content).hexdigest() + later}


def _has_ordinary_eos(content: bytes) -> bool:
    try:
        added = json.loads(content)["added_tokens"]
        return any(token["content"] in EOS and not token["special"] for token in added)
    except (ValueError, KeyError, TypeError):
        return False  # Loading it says what is wrong.


def load_or_train(choice: str, vocab_size: int, texts: Iterator[list[str]], folder: Path) -> Tokenizer:
    """Returns the tokenizer of a corpus and saves it as folder/tokenizer.json, which later calls reuse.

    Raises DataError if the tokenizer is unavailable, has no end-of-text token, or has more than vocab_size tokens.
    """
    path = folder / FILE
    if path.exists():
        return load(path)
    if choice == TRAINED:
        tokenizer = train(texts, vocab_size)
    else:
        tokenizer = _checked(_from_hub(choice) if choice.startswith(HUB) else _existing(choice))
    size = max(tokenizer.get_vocab().values()) + 1
    if size > vocab_size:
        raise DataError(f"data.vocab_size={vocab_size}: the tokenizer {choice} has {size} tokens; use {size} or more")
    eos(tokenizer)
    partial = path.with_suffix(".partial")
    partial.write_text(tokenizer.to_str(), encoding="utf-8")
    partial.replace(path)
    return tokenizer


def train(texts: Iterator[list[str]], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE (Radford et al. 2019) with exactly vocab_size tokens. It encodes any text without loss.

    Raises DataError if the text has too few pairs to merge for a vocabulary of that size.
    """
    from tokenizers import Tokenizer

    batches = ([part for text in batch for part in bounded(text)] for batch in _at_most(texts, MAX_TRAINING_CHARACTERS))
    tokenizer = Tokenizer.from_str(call("train", vocab_size, EOS[0], items=batches))
    size = tokenizer.get_vocab_size()
    if size < vocab_size:
        raise DataError(f"data.vocab_size={vocab_size}: the text yields only {size} BPE tokens; use {size} or less")
    return _literal(tokenizer)


def bounded(text: str) -> Iterator[str]:
    """Cuts a text at every LONGEST_WORD characters of a longer word, as the pre-tokenizer cuts words, and nowhere else.

    The time to learn merges grows with the square of the length of a word, which may be a whole text without spaces.
    """
    if not RUN.search(text):
        yield text
        return
    from tokenizers.pre_tokenizers import ByteLevel

    start = 0
    for _, (first, last) in ByteLevel(add_prefix_space=False).pre_tokenize_str(text):
        for cut in range(first + LONGEST_WORD, last, LONGEST_WORD):
            yield text[start:cut]
            start = cut
    yield text[start:]


def load(path: Path) -> Tokenizer:
    """Loads a tokenizer.json. Raises DataError if the file is not one."""
    from tokenizers import Tokenizer

    try:
        return _literal(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises bare Exception
        raise _unreadable(path, error) from None


def _checked(path: Path) -> Tokenizer:
    """Loads a tokenizer.json that was made elsewhere. Raises DataError if it can't encode text."""
    try:
        size = call("check", str(path))
    except ValueError as error:
        raise _unreadable(path, error) from None
    if size < 2:
        raise DataError(f"{path} is a tokenizer without a vocabulary ({size} tokens): train it before saving it")
    return load(path)


def _unreadable(path: Path, error: Exception) -> DataError:
    if "[UNK]" in str(error) or "unk_id" in str(error):
        return DataError(f"{path} has no unknown token for text outside its vocabulary: add one, or use bpe")
    return DataError(f"{path} can't be read as a tokenizer.json: {one_line(error)}")


def eos(tokenizer: Any) -> int:
    """Returns the id of the end-of-text token. Raises DataError if there is none."""
    for token in EOS:
        if (token_id := tokenizer.token_to_id(token)) is not None:
            return int(token_id)
    raise DataError(f"the tokenizer has no end-of-text token; it needs one of {', '.join(EOS)}")


def _literal(tokenizer: Tokenizer) -> Tokenizer:
    """Makes a tokenizer encode any text as it is.

    `<eos>` in a text is then encoded as five characters, also if the file has it as an ordinary added token. Settings
    to truncate or pad are off.
    """
    ordinary = {str(token) for token in tokenizer.get_added_tokens_decoder().values() if not token.special}
    tokenizer.add_special_tokens([token for token in EOS if token in ordinary])
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class Encoder:
    """Encodes documents and counts in `altered` what their tokens don't give back, but for spaces."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.eos = tokenizer, eos(tokenizer)
        self.altered: Counter[str] = Counter()
        model = json.loads(tokenizer.to_str())["model"]
        unknown = tokenizer.token_to_id(model["unk_token"]) if model.get("unk_token") else model.get("unk_id")
        self.unknown = -1 if unknown is None else int(unknown)
        self._known: set[str] = set()
        self._lost: set[str] = set()

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of each text and the end-of-text token, which no text contains."""
        for text in texts:
            self._count_lost(text)
            self._count_replaced(text)
        found = [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        found = [self._spelled(text) if self.eos in ids else ids for text, ids in zip(texts, found, strict=True)]
        if self.unknown >= 0:
            self.altered[UNKNOWN] += sum(ids.count(self.unknown) for ids in found)
        self.altered = +self.altered
        return [[*ids, self.eos] for ids in found]

    def _spelled(self, text: str) -> list[int]:
        """Returns the ids of a text that has the end-of-text token as a word: there, the text is encoded in parts."""
        token = str(self.tokenizer.id_to_token(self.eos))
        first, *others = text.split(token)
        parts = [first, *(part for other in others for part in (token[:1], token[1:] + other))]
        encoded = self.tokenizer.encode_batch_fast(parts, add_special_tokens=False)
        self.altered[SPELLED] += len(others)
        return [token_id for encoding in encoded for token_id in encoding.ids if token_id != self.eos]

    def _count_lost(self, text: str) -> None:
        """Counts the characters for which the tokenizer has no token, not even an unknown one."""
        for character in set(text) - self._known:
            ids = self.tokenizer.encode(character, add_special_tokens=False).ids
            if not (character.isspace() or self.tokenizer.decode(ids, skip_special_tokens=False).strip()):
                self._lost.add(character)
            self._known.add(character)
        if self._lost:
            self.altered[LOST] += sum(map(text.count, self._lost))

    def _count_replaced(self, text: str) -> None:
        """Counts the characters that a normalizer replaces or removes, such as capitals and accents."""
        if self.tokenizer.normalizer is not None:
            gone = Counter(text) - Counter(self.tokenizer.normalizer.normalize_str(text))
            self.altered[REPLACED] += sum(count for character, count in gone.items() if not character.isspace())


def _at_most(texts: Iterator[list[str]], characters: int) -> Iterator[list[str]]:
    """Yields batches of texts up to the one that exceeds the number of characters."""
    for batch in texts:
        yield batch
        characters -= sum(map(len, batch))
        if characters < 0:
            return


def _existing(choice: str) -> Path:
    path = expanded(choice, "data.tokenizer")
    if not path.is_file():
        raise DataError(f"data.tokenizer={choice}: no such file; use bpe, the path of a tokenizer.json or hub:<repo>")
    return path


def _from_hub(choice: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(choice.removeprefix(HUB), FILE))
    except Exception as error:  # unreachable, no such repository, an invalid repository name, or an error of httpx
        raise DataError(
            f"data.tokenizer={choice} can't be fetched from the hub ({one_line(error)}); use data.tokenizer=bpe, the "
            "path of a tokenizer.json, or a corpus that trains its own tokenizer: data=textmix or data=docstrings"
        ) from None
