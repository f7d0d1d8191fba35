import numpy as np
import pytest

from data import DataError, tokenizer

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


def test_end_of_text_is_looked_for_in_order(texts):
    bpe = tokenizer.train(iter(texts), 300)
    assert tokenizer.eos(bpe) == bpe.token_to_id("<eos>") == 0
    bpe.add_special_tokens(["</s>"])
    assert tokenizer.eos(bpe) == 0
    assert np.array(bpe.encode("</s>").ids).max() < 300
