"""Tokenizer work in a process of its own, which can be ended at any time.

The library's Rust code answers no signal while it works. Its panics are not an `Exception`, and print a backtrace. This
file is run by path, so that the process starts without loading the rest of the package.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any


def call(task: str, *arguments: Any, items: Iterable[Any] = ()) -> Any:
    """Returns the result of one of TASKS, run in a new process that reads `items` while they are made.

    Raises ValueError with the reason if the task fails. Ends the process if anything is raised here.
    """
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-P", __file__]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError):  # The task has failed, and its answer says why.
                pickle.dump((task, arguments), process.stdin)
                for item in items:
                    pickle.dump(item, process.stdin)
            answer, _ = process.communicate()
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        lines = log.read().decode(errors="replace").split("\n")
    if process.returncode:
        raise ValueError(f"its process ended with exit code {process.returncode}: {' '.join(lines[-2:]).strip()}")
    fault, result = pickle.loads(answer)
    if fault is not None:
        raise ValueError(fault)
    return result


def train(vocab_size: int, eos: str) -> str:
    """Returns a byte-level BPE of the batches of texts on stdin, as the text of a tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[eos],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_items(), trainer)
    return tokenizer.to_str()


def check(path: str) -> int:
    """Returns the number of tokens in the model of a tokenizer.json, without added ones, after encoding some text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    if size > 1:
        tokenizer.encode_batch_fast(["", " ", "Some text: Grüße, 日本語, 🎉, \t\x00\r\n", "x" * 300])
    return size


TASKS: dict[str, Callable[..., Any]] = {"train": train, "check": check}


def _items() -> Iterator[Any]:
    with suppress(EOFError):
        while True:
            yield pickle.load(sys.stdin.buffer)


def main() -> None:
    answer: tuple[str | None, Any]
    try:
        task, arguments = next(_items())
        answer = None, TASKS[task](*arguments)
    except BaseException as error:
        answer = " ".join(str(error).split()) or type(error).__name__, None
    pickle.dump(answer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
