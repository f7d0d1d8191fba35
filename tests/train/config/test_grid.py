"""The configs of a grid equal those that Hydra composes for each point alone."""

import pytest

from conf.axis import ConfigError, axes
from tests.conftest import complete, composer
from tests.train.config.helpers import own_conf
from tests.train.helpers import TINY
from train.config.compose import compose
from train.config.grid import compose_all, expand
from train.config.schema import Config
from train.sweeps.plan import plan

POINTS = [
    ["optimizer.lr=0.1", "seed=3"],
    ["optimizer.lr=1e-3", "qk_norm=none"],
    ["eval_lengths=[2,4]"],
    ["compile=true", "devices=null", "data.seed=5"],
    ["out='a b'", "cache=elsewhere"],
    ["model.name=other", "++optimizer.clip=2"],
    ["layer_scale=1", "eval_every=3", "steps=9", "attention.pattern=odd", "model.depth=3"],
    ["data={zipf_exponent:0.5}"],
    ["optimizer=lion", "attention=fox", "attention.pattern=odd", "model.depth=3"],
    ["scale=paper", "qk_norm=none", "model=19M", "model.heads=4"],
    ["experiment=qk_norm", "optimizer=muon", "qk_norm=rmsnorm"],
    ["ladder=mini_width", "model=mini-w128-d2", "model.heads=4"],
]


@pytest.mark.parametrize("point", POINTS, ids=" ".join)
def test_a_point_is_as_hydra_composes_it(point):
    found = composer().config([*TINY, *point])
    alone = compose([*TINY, *point])
    assert found == alone
    assert found.values() == alone.values()
    assert found.run_name() == alone.run_name()


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_every_choice_is_as_hydra_composes_it(scale):
    """Only Hydra's own composition reads the defaults lists."""
    shapes = ["model.width=64", "model.depth=2", "model.heads=4"]
    points = [
        complete(f"scale={scale}", f"{axis}={name}", *shapes, *(["data.path=x"] if name == "text" else []))
        for axis, registry in axes(Config).items()
        for name in registry.choices
        if name != "recall"  # Its sequences have one length.
    ]
    assert [c.values() for c in compose_all(points)] == [compose(point).values() for point in points]


def test_points_of_one_base_stay_apart():
    found = compose_all([[*TINY, f"optimizer.lr={lr}", *more] for lr in (0.1, 0.2) for more in ([], ["data.seed=7"])])
    assert [(c.optimizer.lr, c.data.seed) for c in found] == [(0.1, 0), (0.1, 7), (0.2, 0), (0.2, 7)]
    assert len({c.run_name() for c in found}) == 4


@pytest.mark.parametrize(
    "override",
    ["optimizer.lrr=0.1", "optimizer.lr.x=1", "stepss=3", "optimizer.lr=abc", "seed=-1", "steps='3'", "seed=???",
     "optimizer=null", "optimizer.lr={a:1}", "seed=true", "seed='3'", "seed=2.5", "optimizer.lr=true",
     "layer_scale=inf", "optimizer.lr=nan", "optimizer.lr='0.1'", "compile=1", "precision=fp16", "finding=nothing",
     "accumulate=3", "model.heads=3", "schedule.warmup_steps=99", "attention.pattern=nowhere",
     "arms.plain.seed=3", "+arms={a:{seed:1}}", "+steps._target_=1", "~steps",
     "steps", "a b", "=3", "optimizer.lr=[1"],
)  # fmt: skip
def test_what_one_run_refuses_a_grid_refuses_with_the_same_words(override):
    with pytest.raises(ConfigError) as alone:
        compose([*TINY, override])
    with pytest.raises(ConfigError) as found:
        composer().config([*TINY, override])
    assert str(found.value) == str(alone.value)


def test_what_follows_another_key_follows_a_point(tmp_path):
    """No file in conf/ has such a value, but an experiment may."""
    with own_conf(tmp_path) as conf:
        (conf / "experiment" / "follows.yaml").write_text("# @package _global_\neval_every: ${steps}\n")
        points = [[*TINY, "experiment=follows", f"steps={steps}"] for steps in (6, 8)]
        assert [c.eval_every for c in compose_all(points)] == [6, 8]


def test_mappings_are_merged_into_what_each_point_has():
    points = [[*TINY, f"data={{{value}}}"] for value in ("zipf_exponent:0.5", "sigma:1")]
    found = [(c.data.zipf_exponent, c.data.sigma) for c in compose_all(points)]
    assert found == [(0.5, 3.0), (1.0, 1.0)]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("launcher: {time: 4:00:00}", "line 2: YAML reads 4:00:00 as 14400: write '4:00:00', in quotes"),
        ("hydra: {sweeper: {params: {launcher.time: 1:30}}}", "line 2: YAML reads 1:30 as 90: write '1:30', in quotes"),
        ("steps: 010", "line 2: YAML reads 010 as 8: write '010', in quotes"),
        ("arms:\n  on: {seed: 1}", "line 3: YAML reads on as True: write 'on', in quotes"),
        ("arms:\n  3.10: {seed: 1}", "line 3: YAML reads 3.10 as 3.1: write '3.10', in quotes"),
    ],
)
def test_a_file_with_a_value_that_yaml_retypes_is_refused(tmp_path, lines, said):
    with own_conf(tmp_path) as conf:
        (conf / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{lines}\n")
        (conf / "experiment" / "further.yaml").write_text("# @package _global_\ndefaults:\n  - /experiment/mine\n")
        for name in ("mine", "further"):
            with pytest.raises(ConfigError) as found:
                expand([f"experiment={name}"])
            assert str(found.value) == f"{conf}/experiment/mine.yaml, {said}"


HEADER = "must begin with # @package _global_"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("launcher: {time: 4:00:00}", "{0}, line 2: YAML reads 4:00:00 as 14400: write '4:00:00', in quotes"),
        ("steps: [1\nname: }", "{0}, line 3: expected ',' or ']', but got ':': correct the YAML"),
        (
            "name: Gr\xfc",
            "{0}: 'utf-8' codec can't decode byte 0xfc in position 28: invalid start byte: save it as YAML in UTF-8",
        ),
        ("- a", "In '{0}': ConfigTypeError raised while composing config: Cannot merge DictConfig with ListConfig: "
                f"correct {{0}}, which {HEADER}"),
        ("defaults:\n  - override /atention: softmax",
         f"In '{{0}}': Could not override 'atention'. No match in the defaults list: correct {{0}}, which {HEADER}"),
        ("defaults:\n  - other", "{0} names experiment/other, which conf/ doesn't have: put both files into "
                                  "experiment/ of a folder, and give that folder as --conf FOLDER"),
    ],
)  # fmt: skip
def test_a_fault_in_a_file_given_by_path_names_it_from_the_current_folder(tmp_path, monkeypatch, lines, said):
    mine = tmp_path / "a folder" / "mine.yaml"
    mine.parent.mkdir()
    mine.write_text(f"# @package _global_\n{lines}\n", encoding="latin-1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as found:
        expand(["experiment='./a folder/mine.yaml'"])
    assert str(found.value) == said.format("a folder/mine.yaml")


def test_a_fault_in_a_file_elsewhere_names_its_whole_path(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    mine = tmp_path / "mine.yaml"
    mine.write_text("# @package _global_\nsteps: 010\n")
    with pytest.raises(ConfigError) as found:
        compose(["experiment=../mine.yaml"])
    assert str(found.value) == f"{mine}, line 2: YAML reads 010 as 8: write '010', in quotes"


def test_a_fault_in_a_folder_of_ones_own_names_the_file(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "slim.yaml").write_bytes(b"name: Gr\xfc")
    monkeypatch.setenv("STABILAB_CONF", str(tmp_path))
    with pytest.raises(ConfigError, match=r"model/slim\.yaml: 'utf-8' codec can't decode") as found:
        compose(["model=slim"])
    assert str(found.value).startswith(f"{tmp_path}/model")


def test_a_quoted_time_stays_a_time(tmp_path):
    with own_conf(tmp_path) as conf:
        text = "# @package _global_\ndefaults:\n  - override /launcher: slurm\nlauncher: {time: '4:00:00'}\n"
        (conf / "experiment" / "mine.yaml").write_text(text)
        assert compose(["experiment=mine"]).launcher.time == "4:00:00"


def test_a_number_for_a_text_says_to_quote_it():
    with pytest.raises(
        ConfigError, match=r"^name=2024: input should be a valid string: quote it, .*\"name='\.\.\.'\"$"
    ):
        composer().config([*TINY, "name=2024"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=range(0)", "seed=range(0) has no values: use a range whose stop is beyond its start, or a,b"),
        ("seed=range(3,0)", "seed=range(3,0) has no values: use a range whose stop is beyond its start, or a,b"),
        ("seed=interval(0,1)", "seed=interval(0,1) does not list values: use a,b or range(start,stop,step)"),
        ("seed=range(0,3,0)", "seed=range(0,3,0) does not list values: use a,b or range(start,stop,step)"),
        ("seed=range(0,1,0.0)", "seed=range(0,1,0.0) does not list values: use a,b or range(start,stop,step)"),
        ("seed=range(0,nan)", "seed=range(0,nan) does not list values: use a,b or range(start,stop,step)"),
        ("seed=range(2e6)", "seed=range(2e6) has more than 1,000 values: use fewer"),
        ("seed=range(inf)", "seed=range(inf) has more than 1,000 values: use fewer"),
    ],
)
def test_ranges_that_give_no_grid_are_one_line(override, message, monkeypatch):
    monkeypatch.setattr("train.config.grid.MOST_POINTS", 1000)
    with pytest.raises(ConfigError) as error:
        expand([override])
    assert str(error.value) == message


def test_a_grid_has_an_end(monkeypatch):
    monkeypatch.setattr("train.config.grid.MOST_POINTS", 1000)
    assert len(expand(["seed=range(100)", "steps=range(1,11)"])) == 1000
    with pytest.raises(ConfigError, match="the grid of seed, steps has more than 1,000 points: use fewer values"):
        expand(["seed=range(100)", "steps=range(1,12)"])


def test_an_empty_list_is_one_value():
    assert expand(["eval_lengths=[]", "seed=1,2"]) == [(None, ["eval_lengths=[]", f"seed={s}"]) for s in (1, 2)]


def test_whatever_fails_in_composing_is_one_line():
    nested = "seed=" + "[" * 300 + "]" * 300  # Beyond the depth to which a library recurses.
    for composing in (compose, lambda point: compose_all([point])):
        with pytest.raises(ConfigError, match=r"^can't compose seed=\[\[.*Recursion"):
            composing([nested])


@pytest.mark.parametrize("early", ["plugins=./mine.py", "ladder=mini", "experiment=qk_norm"])
def test_what_is_read_before_arms_is_refused_in_one(early):
    key = early.partition("=")[0]
    with pytest.raises(ConfigError, match=f"arms: 'own' has {key}, which is read before arms: give it once"):
        expand([f"arms=plain: ; own: {early} attention=softcap"])


@pytest.mark.parametrize("text", ["eval_lengths=[2,4]", "watch.stop=[logits]"])
def test_a_list_in_a_sweep_is_a_grid_and_the_refusal_says_so(text):
    key, _, value = text.partition("=")
    with pytest.raises(ConfigError) as error:
        plan(["seed=0,1", text])
    assert f"{text} is a grid of several values: write {key}=[{value}] for one list" in str(error.value)
    assert len(plan(["seed=0,1", f"{key}=[{value}]"]).configs) == 2


@pytest.mark.parametrize(
    ("text", "instead"), [("ladder=mini,mini_depth", "name the sizes"), ("experiment=qk_norm,warmup", "one value")]
)
def test_one_ladder_and_one_experiment(text, instead):
    with pytest.raises(ConfigError, match=f"{text} has several values where one is read: .*{instead}"):
        expand([text])
