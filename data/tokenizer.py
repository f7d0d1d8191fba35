"""Tokenizers of text corpora: byte-level BPE trained here, or any tokenizer.json."""

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
# End-of-text tokens in the order in which they are looked for: ours, T5's and Llama's, GPT-2's, Llama 3's.
EOS = ("<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>")
SMALLEST = 256 + 1
# Merges are learned from this much text at most, in characters: more costs hours and changes few of them.
TRAINING_TEXT = 200_000_000


def fingerprint(choice: str) -> dict[str, str]:
    """The hash of a tokenizer.json that is given as a path, so that the place of the file doesn't matter."""
    if choice == TRAINED or choice.startswith(HUB):
        return {}
    return {"tokenizer": hashlib.sha256(_existing(choice).read_bytes()).hexdigest()}


def obtain(choice: str, vocab_size: int, texts: Iterator[list[str]], folder: Path) -> Tokenizer:
    """The tokenizer of a corpus, kept as folder/tokenizer.json; one that is there already is used.

    Raises DataError when it can't be had, has no end-of-text token or does not fit vocab_size.
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
    """Byte-level BPE (Radford et al. 2019) with exactly vocab_size tokens; any text comes back exactly.

    Raises DataError when the text has too few pairs to merge for a vocabulary of that size.
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
    tokenizer.train_from_iterator(_at_most(texts, TRAINING_TEXT), trainer)
    size = tokenizer.get_vocab_size()
    if size < vocab_size:
        raise DataError(f"data.vocab_size={vocab_size}: the text gives a BPE of {size} tokens only; use {size} or less")
    return _plain(tokenizer)


def load(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json; raises DataError when the file is not one."""
    from tokenizers import Tokenizer

    try:
        return _plain(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{path} is not a tokenizer.json that can be read: {one_line(error)}") from None


def eos(tokenizer: Any) -> int:
    """The id of the end-of-text token."""
    for token in EOS:
        if (token_id := tokenizer.token_to_id(token)) is not None:
            return int(token_id)
    raise DataError(f"the tokenizer has no end-of-text token; it needs one of {', '.join(EOS)}")


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    # A text that contains the characters `<eos>` must not end there, and a tokenizer.json may ask to truncate or pad.
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _at_most(texts: Iterator[list[str]], characters: int) -> Iterator[list[str]]:
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
    except (OSError, ValueError) as error:  # not reachable, no such repository, not a repository's name
        raise DataError(
            f"data.tokenizer={choice} can't be fetched from the hub ({one_line(error)}); use data.tokenizer=bpe, the "
            "path of a tokenizer.json, or a corpus with a tokenizer of its own: data=textmix or data=docstrings"
        ) from None
