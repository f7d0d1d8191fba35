import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from tokenizers import AddedToken, Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel

from conf.axis import ConfigError
from data import DataError, tokenizer
from data.tokenizer_process import call

TEXT = "Any text comes back: Grüße, 日本語, 🎉, \t\x00\r\n and <eos> </s> <|endoftext|> as written.  \n"


@pytest.fixture(scope="module")
def texts():
    return [[f"{a} {b} the {a}{b} of {b}, and {a}" for a in ("time", "way", "year", "day")] for b in "abcdefghij"]


def test_round_trip_is_exact(texts):
    bpe = tokenizer.train(iter(texts), 300)
    ids = bpe.encode(TEXT, add_special_tokens=False).ids
    assert bpe.decode(ids, skip_special_tokens=False) == TEXT
    assert tokenizer.eos(bpe) not in ids


@pytest.mark.parametrize("vocab_size", [257, 280, 300])
def test_vocab_size_is_met(texts, vocab_size):
    bpe = tokenizer.train(iter(texts), vocab_size)
    assert sorted(bpe.get_vocab().values()) == list(range(vocab_size))
    merged = len(bpe.encode(texts[0][0]).ids)
    assert (merged == len(texts[0][0])) == (vocab_size == 257)


def test_training_is_deterministic(texts):
    assert tokenizer.train(iter(texts), 300).to_str() == tokenizer.train(iter(texts), 300).to_str()


def test_too_little_text_names_a_size_that_works(texts):
    with pytest.raises(DataError, match=r"data.vocab_size=5000: the text yields only (\d+) BPE tokens") as error:
        tokenizer.train(iter(texts), 5000)
    size = int(str(error.value).split(" yields only ")[1].split()[0])
    assert tokenizer.train(iter(texts), size).get_vocab_size() == size


def test_a_file_is_taken_as_it_is_but_never_pads_or_truncates(texts, tmp_path):
    bpe = tokenizer.train(iter(texts), 300)
    bpe.enable_truncation(3)
    bpe.enable_padding(length=50)
    bpe.save(str(tmp_path / "mine.json"))
    found = tokenizer.load_or_train(str(tmp_path / "mine.json"), 300, iter([]), tmp_path)
    assert found.decode(found.encode(TEXT, add_special_tokens=False).ids, skip_special_tokens=False) == TEXT
    assert (tmp_path / "tokenizer.json").exists()


def test_files_that_do_not_fit_are_refused(texts, tmp_path):
    tokenizer.train(iter(texts), 300).save(str(tmp_path / "mine.json"))
    (tmp_path / "broken.json").write_text("{}")
    no_eos = tokenizer.train(iter(texts), 300).to_str().replace("<eos>", "<end>")
    (tmp_path / "no_eos.json").write_text(no_eos)
    for name, message in {
        "mine.json": r"data.vocab_size=299: the tokenizer .*mine.json has 300 tokens; use 300 or more",
        "broken.json": r"broken.json can't be read as a tokenizer.json: ",
        "no_eos.json": r"the tokenizer has no end-of-text token; it needs one of <eos>, ",
        "none.json": r"data.tokenizer=.*none.json: no such file; use bpe, ",
    }.items():
        size = 299 if name == "mine.json" else 300
        with pytest.raises(DataError, match=message) as error:
            tokenizer.load_or_train(str(tmp_path / name), size, iter([]), tmp_path / "out")
        assert "\n" not in str(error.value)


def test_fingerprint_is_the_content(texts, tmp_path):
    for name in ("a.json", "b.json"):
        tokenizer.train(iter(texts), 300).save(str(tmp_path / name))
    tokenizer.train(iter(texts), 290).save(str(tmp_path / "c.json"))
    prints = [tokenizer.fingerprint(str(tmp_path / f"{name}.json"))["tokenizer"] for name in "abc"]
    assert (prints[0] == prints[1], prints[0] == prints[2]) == (True, False)
    assert tokenizer.fingerprint("bpe") == tokenizer.fingerprint("hub:a/b") == {}


@pytest.mark.usefixtures("no_home")
def test_a_tokenizer_in_no_home_is_one_line():
    with pytest.raises(
        ConfigError, match=r"^data\.tokenizer=~/t\.json: there is no home folder: give a path without ~"
    ):
        tokenizer.fingerprint("~/t.json")


def test_end_of_text_is_looked_for_in_order(texts):
    bpe = tokenizer.train(iter(texts), 300)
    assert tokenizer.eos(bpe) == bpe.token_to_id("<eos>") == 0
    bpe.add_special_tokens(["</s>"])
    assert tokenizer.eos(bpe) == 0
    assert np.array(bpe.encode("</s>").ids).max() < 300


def saved(path, model, *added, special=False, **parts):
    """Saves a tokenizer.json of this model with added tokens."""
    made = Tokenizer(model)
    for name, part in parts.items():
        setattr(made, name, part)
    made.add_tokens([AddedToken(token, special=special) for token in added])
    made.save(str(path))
    return str(path)


def test_an_ordinary_added_end_of_text_token_is_no_end_in_a_text(texts, tmp_path):
    ours = json.loads(tokenizer.train(iter(texts), 300).to_str())
    for token in ours["added_tokens"]:
        token["special"] = False
    (tmp_path / "mine.json").write_text(json.dumps(ours))
    found = tokenizer.load_or_train(str(tmp_path / "mine.json"), 300, iter([]), tmp_path)
    encoder = tokenizer.Encoder(found)
    (ids,) = encoder.encode(["before <eos> after<eos>"])
    assert (ids.count(encoder.eos), ids[-1]) == (1, encoder.eos)
    assert found.decode(ids[:-1], skip_special_tokens=False) == "before <eos> after<eos>"
    assert encoder.altered == {}
    ours["added_tokens"][0]["special"] = True
    (tmp_path / "special.json").write_text(json.dumps(ours))
    prints = [tokenizer.fingerprint(str(tmp_path / name))["tokenizer"] for name in ("mine.json", "special.json")]
    assert [", literal" in text for text in prints] == [True, False]


def test_an_end_of_text_token_that_is_a_word_of_the_model_is_spelled_out(tmp_path):
    words = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -2.0) for letter in "ab</s>")]
    path = saved(tmp_path / "t5.json", models.Unigram(words, 0), "</s>", special=True)
    encoder = tokenizer.Encoder(tokenizer.load_or_train(path, 9, iter([]), tmp_path))
    assert encoder.encode(["a</s>b"]) == [[*(encoder.tokenizer.token_to_id(c) for c in "a</s>b"), encoder.eos]]
    assert encoder.altered == {tokenizer.SPELLED: 1}


def test_what_a_tokenizer_does_not_know_is_counted(tmp_path):
    vocabulary = {"<eos>": 0, "a": 1, "b": 2, "<unk>": 3}
    lossy = saved(tmp_path / "lossy.json", models.BPE(vocabulary, []))
    encoder = tokenizer.Encoder(tokenizer.load_or_train(lossy, 4, iter([]), tmp_path))
    assert encoder.encode(["aébé", "ba c"]) == [[1, 2, 0], [2, 1, 0]]
    assert encoder.altered == {tokenizer.LOST: 3}  # A space is lost as well, and not counted.
    (tmp_path / "tokenizer.json").unlink()
    unknown = saved(tmp_path / "unknown.json", models.BPE(vocabulary, [], unk_token="<unk>"))
    encoder = tokenizer.Encoder(tokenizer.load_or_train(unknown, 4, iter([]), tmp_path))
    assert encoder.encode(["aéb"]) == [[1, 3, 2, 0]]
    assert encoder.altered == {tokenizer.UNKNOWN: 1}


def test_what_a_normalizer_replaces_is_counted(tmp_path):
    vocabulary = {"<eos>": 0} | {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz ", 1)}
    ours = json.loads(Path(saved(tmp_path / "plain.json", models.BPE(vocabulary, []))).read_text())
    steps = [{"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}]
    for name, normalizer, count in (
        ("lower", {"type": "Sequence", "normalizers": steps}, 5),  # T, C, A, T, \u00e9
        ("spaces", {"type": "Strip", "strip_left": True, "strip_right": True}, 0),
    ):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(ours | {"normalizer": normalizer}))
        (tmp_path / name).mkdir()
        encoder = tokenizer.Encoder(tokenizer.load_or_train(str(path), 300, iter([]), tmp_path / name))
        encoder.encode([" The CAT \u00e9"])
        assert encoder.altered[tokenizer.REPLACED] == count


def test_tokenizers_that_cannot_encode_are_refused_in_one_line(tmp_path, capfd):
    words = {"a": 0, "<eos>": 1}
    panics = json.loads(Path(saved(tmp_path / "panics.json", models.BPE(words, []))).read_text())
    panics["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": ""}
    (tmp_path / "panics.json").write_text(json.dumps(panics))
    for path, message in {
        saved(tmp_path / "words.json", models.WordLevel(words)): "has no unknown token for text outside its vocab",
        saved(tmp_path / "pieces.json", models.WordPiece(words)): "has no unknown token for text outside its vocab",
        saved(tmp_path / "gram.json", models.Unigram([("a", -1.0), ("<eos>", -1.0)])): "has no unknown token for",
        saved(tmp_path / "untrained.json", models.BPE(), "<eos>"): "is a tokenizer without a vocabulary",
        saved(tmp_path / "none.json", models.BPE()): "is a tokenizer without a vocabulary",
        str(tmp_path / "panics.json"): r"can't be read as a tokenizer.json: .*Cannot parse precompiled_charsmap",
    }.items():
        with pytest.raises(DataError, match=message) as error:
            tokenizer.load_or_train(path, 300, iter([]), tmp_path / "out")
        assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_only_longer_words_are_cut():
    short = "a" * 1000 + " " + "b" * 999 + "!?" * 300 + " " * 900 + "c"
    assert list(tokenizer.bounded(short)) == [short]
    long = "x " + "ACGT" * 600 + "," * 5 + "本" * 1001 + ". " + " " * 2500 + "end"
    parts = list(tokenizer.bounded(long))
    assert "".join(parts) == long
    assert [len(part) for part in parts] == [1001, 1000, 1406, 1002, 1000, 504]
    # DNA of 100,000 characters in one word: quadratic time would be minutes.
    dna = "".join(random.Random(0).choices("ACGT", k=100_000))
    assert tokenizer.train(iter([[dna]]), 300).get_vocab_size() == 300


def test_the_work_of_training_is_bounded_by_the_length_of_the_text(monkeypatch):
    """Learning takes the square of the length of a word: none that the training reads is longer than 1,000."""
    sent = []

    def read(task, vocab_size, eos, items):
        sent.extend(text for batch in items for text in batch)
        raise ValueError("read")

    monkeypatch.setattr(tokenizer, "call", read)
    noise = random.Random(0).randbytes(1_000_000)
    for text in (dna(1_000_000), base64.b64encode(noise[:150_000]).decode(), " " * 100_000, "本" * 100_000):
        sent.clear()
        with pytest.raises(ValueError, match=r"^read$"):
            tokenizer.train(iter([[text]]), 300)
        assert "".join(sent) == text
        cut = ByteLevel(add_prefix_space=False).pre_tokenize_str
        lengths = [last - first for part in sent for _, (first, last) in cut(part)]
        assert max(lengths) <= 1000
        assert sum(length**2 for length in lengths) <= 1000 * len(text)


def dna(length):
    return random.Random(0).randbytes(length).translate(bytes(b"ACGT"[i % 4] for i in range(256))).decode()


LEARN = """
import sys
from data import tokenizer
from train.cli.terminal import exit_with
from train.run.process import sigterm_like_ctrl_c

with sigterm_like_ctrl_c():
    exit_with(lambda: tokenizer.train(iter([[open(sys.argv[1]).read()]]), 60_000))
"""
TRAIN = ["-m", "train", "data=text", "data.vocab_size=60000", "logger=none", "progress=false", "out=out", "cache=cache"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["alone", "command"])
def test_a_signal_ends_the_training_of_a_tokenizer_in_one_line(tmp_path, signum, whole):
    """Ctrl-C reaches all processes of a terminal, SIGTERM the command alone. Neither reaches Rust code at work."""
    text = tmp_path / "dna.txt"
    text.write_text("\n\n".join([dna(1_000_000)] * 2))
    command = [*TRAIN, f"data.path={text}"] if whole else ["-c", LEARN, str(text)]
    environment = os.environ | {"PYTHONPATH": str(Path(tokenizer.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, *command], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    learning = None
    while process.poll() is None and learning is None:
        with suppress(psutil.Error):
            children = psutil.Process(process.pid).children()
            learners = [child for child in children if "tokenizer_process" in " ".join(child.cmdline())]
            learning = next((child for child in learners if child.cpu_times().user > 0.5), None)
        time.sleep(0.05)
    assert learning is not None
    (os.killpg if signum == signal.SIGINT else os.kill)(process.pid, signum)
    _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (130, "stopped; the same command resumes from the last checkpoint\n")
    assert not psutil.pid_exists(learning.pid)
    assert not (tmp_path / "out").exists()


def test_training_ends_with_whatever_stops_it(tmp_path, monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])

    def stopped():
        yield ["some text"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenizer.train(stopped(), 300)
    assert started[0].returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match=r"^'int' object is not an instance of 'str'$"):
        call("train", 300, "<eos>", items=[[3]])
