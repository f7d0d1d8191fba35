"""Hub corpora without a network: errors and defaults. test_base.py tests streams, with a local file."""

CODE = """
import sys
from pathlib import Path
from conf.axis import ConfigError
from data import DATA, prepare
bpe = {"vocab_size": 300, "tokenizer": "bpe"}
hub = {"max_tokens": 1000, "revision": "main"}
Path(sys.argv[1], "rows.jsonl").write_text('{"text": "a b c"}\\n{"text": "d e f"}\\n')
for name, values in [
    ("c4", bpe | hub),
    ("fineweb", bpe | hub),
    ("text", {"vocab_size": 300, "tokenizer": "hub:google-t5/t5-base", "path": sys.argv[1] + "/rows.jsonl"}),
]:
    try:
        prepare(DATA.choices[name](**values), Path(sys.argv[1]), progress=False)
    except ConfigError as error:
        print(error)
"""


def test_offline_is_one_line_that_names_what_works(tmp_path, python):
    output, _ = python(CODE, tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty")).communicate()
    lines = output.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("data=c4: allenai/c4 can't be streamed from the hub (Couldn't reach")
    assert lines[1].startswith("data=fineweb: HuggingFaceFW/fineweb can't be streamed from the hub (Couldn't reach")
    assert lines[2].startswith("data.tokenizer=hub:google-t5/t5-base can't be fetched from the hub (")
    for line in lines:
        assert "data=textmix" in line
        assert "data=docstrings" in line


def test_the_defaults_are_the_papers(config):
    c4, fineweb = config("c4"), config("fineweb")
    assert c4.fingerprint() == {"dataset": ["allenai/c4", "en", "validation"]}
    assert (c4.vocab_size, c4.tokenizer) == (32101, "hub:google-t5/t5-base")
    assert fineweb.fingerprint() == {"dataset": ["HuggingFaceFW/fineweb", "sample-10BT", None]}
    assert (fineweb.vocab_size, fineweb.tokenizer) == (50257, "hub:openai-community/gpt2")
