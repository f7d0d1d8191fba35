import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conf.axis import checked
from data import DATA

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config():
    """Returns a function that builds a corpus config from its YAML file, with some values replaced."""

    def make(name, **values):
        defaults = yaml.safe_load((ROOT / "conf" / "data" / f"{name}.yaml").read_text())
        return checked(DATA.choices[name], defaults | values)

    return make


@pytest.fixture(scope="session")
def jsonl(tmp_path_factory):
    """Returns a .jsonl file of 5000 documents of a few hundred characters, which are 20 chunks."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(900)]
    path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    rows = [{"text": " ".join(draw.choices(words, k=draw.randint(20, 80))), "other": i} for i in range(5000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def python():
    """Returns a function that runs Python code in a subprocess."""
    started = []

    def start(code, *arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
