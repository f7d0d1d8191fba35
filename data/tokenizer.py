"""Tokenizers of text corpora: a byte-level BPE trained on the corpus, or an existing tokenizer.json."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.config import DataError, one_line

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


def fingerprint(choice: str) -> dict[str, str]:
    """Returns the hash of a tokenizer.json given by path, so that the content counts and not the path."""
    if choice == TRAINED or choice.startswith(HUB):
        return {}
    return {"tokenizer": hashlib.sha256(_existing(choice).read_bytes()).hexdigest()}


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
        tokenizer = load(_from_hub(choice) if choice.startswith(HUB) else _existing(choice))
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
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS[0]],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_at_most(texts, MAX_TRAINING_CHARACTERS), trainer)
    size = tokenizer.get_vocab_size()
    if size < vocab_size:
        raise DataError(f"data.vocab_size={vocab_size}: the text yields only {size} BPE tokens; use {size} or less")
    return _literal(tokenizer)


def load(path: Path) -> Tokenizer:
    """Loads a tokenizer.json. Raises DataError if the file is not one."""
    from tokenizers import Tokenizer

    try:
        return _literal(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{path} can't be read as a tokenizer.json: {one_line(error)}") from None


def eos(tokenizer: Any) -> int:
    """Returns the id of the end-of-text token. Raises DataError if there is none."""
    for token in EOS:
        if (token_id := tokenizer.token_to_id(token)) is not None:
            return int(token_id)
    raise DataError(f"the tokenizer has no end-of-text token; it needs one of {', '.join(EOS)}")


def _literal(tokenizer: Tokenizer) -> Tokenizer:
    """Makes a tokenizer encode any text as it is.

    `<eos>` in a text is then encoded as five characters, and settings of a tokenizer.json to truncate or pad are off.
    """
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _at_most(texts: Iterator[list[str]], characters: int) -> Iterator[list[str]]:
    """Yields batches of texts up to the one that exceeds the number of characters."""
    for batch in texts:
        yield batch
        characters -= sum(map(len, batch))
        if characters < 0:
            return


def _existing(choice: str) -> Path:
    path = Path(choice).expanduser()
    if not path.is_file():
        raise DataError(f"data.tokenizer={choice}: no such file; use bpe, the path of a tokenizer.json or hub:<repo>")
    return path


def _from_hub(choice: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(choice.removeprefix(HUB), FILE))
    except (OSError, ValueError) as error:  # unreachable, no such repository, or an invalid repository name
        raise DataError(
            f"data.tokenizer={choice} can't be fetched from the hub ({one_line(error)}); use data.tokenizer=bpe, the "
            "path of a tokenizer.json, or a corpus that trains its own tokenizer: data=textmix or data=docstrings"
        ) from None
