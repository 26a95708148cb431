"""The ablation: its models, resuming, and its report."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from y7edge.data.dataset import load
from y7edge.errors import ConfigError
from y7edge.models.shapes import weight_shapes
from y7edge.nn.build import Model
from y7edge.train.run import state
from y7edge.train.settings.configfile import read, write
from y7edge.train.setup.parts import start_model

FOLDER = Path(__file__).parents[3] / "examples" / "research"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(FOLDER))
    import ablation

    yield ablation
    sys.path.remove(str(FOLDER))
    for name in ("ablation", "ablation_report"):
        del sys.modules[name]


@pytest.fixture(scope="module")
def report(script):
    import ablation_report

    return ablation_report


def keys(script, name):
    return set(weight_shapes(script.SETTING[name].spec(4, 0.125)))


def test_chains_differ_in_their_branches_alone(script):
    plain, rep, without = (
        script.SETTING[n].spec(4, 0.125) for n in ("p5", "p5-repconv", "p5-repconvn")
    )
    chains = [row.index for row in plain.rows if row.role == "chain"]
    assert len(chains) == 32
    for spec, block in ((plain, "conv"), (rep, "repconv"), (without, "repconv")):
        assert {spec.rows[index].block for index in chains} == {block}
        others = [row for row in spec.rows if row.index not in chains]
        assert others == [row for row in plain.rows if row.index not in chains]
    assert not any(row.identity for row in without.rows)
    # The first link of a chain in the neck halves the channels: nothing to be identical to.
    assert sum(row.identity for row in rep.rows) == 28
    with pytest.raises(ConfigError, match="has an identity branch"):
        Model(rep)


def test_settings_of_the_head(script):
    lead, coarse = keys(script, "w6-lead"), keys(script, "w6-coarse")
    assert not any(".aux." in key for key in lead)
    assert sum(".aux." in key for key in coarse) == 8
    implicit = keys(script, "p5") - keys(script, "p5-explicit")
    assert {key.split(".")[2] for key in implicit} == {"add", "mul"}
    assert keys(script, "p5-last") == keys(script, "p5")


def options(script, out, *words):
    small = {"images": 4, "evaluated": 2, "epochs": 1, "seeds": 1, "batch": 2}
    small |= {"imgsz": 128, "width": 0.0625}
    given = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    return script.parse(["--out", str(out), *given, *words])


@pytest.mark.parametrize("name", ["p5-repconv", "w6-guided", "p5-explicit", "p5-last"])
def test_trainings_are_what_the_setting_says(script, tmp_path, name):
    found = script.config(name, 3, tmp_path / "data.yaml", 4, options(script, tmp_path))
    assert found.seed == 3
    assert found.spec == script.SETTING[name].spec(4, 0.0625)
    assert found.assigner == {"w6-guided": "lead-guided"}.get(name, "auto")
    assert found.hyper.average == ("none" if name == "p5-last" else "ema")
    assert found.validation_interval == found.epochs


def test_identity_branches_come_back_with_a_resumed_run(script, tmp_path):
    made = script.config("p5-repconv", 0, tmp_path / "data.yaml", 4, options(script, tmp_path))
    write(made, tmp_path / "config.yaml")
    found = read(tmp_path / "config.yaml")
    assert found.spec == made.spec
    model = start_model(found, "abcd").model
    branches = {name for name, _ in model.named_modules() if name.endswith("identity")}
    assert branches == {f"rows.{row.index}.identity" for row in made.spec.rows if row.identity}
    assert branches


def test_images_are_made_once_by_concurrent_processes(script, tmp_path, monkeypatch):
    real = script.scenes.generate
    wanted = options(script, tmp_path)

    def overtaken(folder, *counts):
        if not (tmp_path / "data").exists():
            real(tmp_path / "data", *counts)
        return real(folder, *counts)

    monkeypatch.setattr(script.scenes, "generate", overtaken)
    described = script.synthetic_data(wanted)
    monkeypatch.setattr(script.scenes, "generate", None)
    assert script.synthetic_data(wanted) == described == tmp_path / "data" / "data.yaml"
    assert [len(load(described).split(name)) for name in ("train", "val")] == [4, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.slow
def test_every_training_is_done_once_and_resumes(script, tmp_path, monkeypatch):
    chosen = options(script, tmp_path, "--only", "implicit", "average")
    begun = []
    real = script.train

    def train(config, *, progress):
        begun.append(config.out.name)
        if config.out.name == "p5-last-seed0" and begun.count("p5-last-seed0") == 1:
            raise KeyboardInterrupt
        return real(config, progress=progress)

    class Interrupting(script.Whole):
        def step(self, status):
            if self._name.split()[1] == "p5," and status.iteration == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(script, "train", train)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(script, "Whole", Interrupting)
        script.run(chosen)
    kept = state.read(tmp_path / "trainings" / "p5-seed0" / state.STATE).facts
    assert (kept.position.epoch, kept.position.batch) == (1, 1)
    with pytest.raises(KeyboardInterrupt):  # before the first state
        script.run(chosen)
    script.run(chosen)
    script.run(chosen)
    assert sorted(begun) == ["p5-explicit-seed0", "p5-last-seed0", "p5-last-seed0", "p5-seed0"]
    record = json.loads((tmp_path / "results.json").read_text())
    named = [f"{r['experiment']} {r['setting']}" for r in record["results"]]
    assert named == ["implicit off", "implicit on", "average off", "average EMA"]
    assert record["results"][1]["map50_95"] == record["results"][3]["map50_95"]
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines[0] == "experiment,setting,seed,map50_95,map50"
    assert len(lines) == 5
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="--epochs 1, not 2"):
        script.run(options(script, tmp_path, "--epochs", "2"))
    monkeypatch.setattr(script, "RECIPE", script.RECIPE.changed({"clip_norm": 1}))
    with pytest.raises(ConfigError, match="another recipe"):
        script.run(chosen)


def test_table_has_spread_differences_and_the_papers_figures(report):
    values = {"no auxiliary": (0.2, 0.3), "coarse-to-fine": (0.25, 0.28)}
    results = [
        report.Result("auxiliary", setting, seed, value, 2 * value)
        for setting, pair in values.items()
        for seed, value in enumerate(pair)
    ]
    *_, base, coarse = report.markdown(results).splitlines()
    assert base == "| no auxiliary | 0.200, 0.300 | 0.250 |  | 0.500 | 55.6 (YOLOv7-E6) |"
    assert coarse == (
        "| coarse-to-fine | 0.250, 0.280 | 0.265 | +0.050, -0.020 | 0.530 | 55.9 (YOLOv7-E6) |"
    )
    assert report.quoted("implicit", "on") == "none known to us"


def test_every_setting_with_a_paper_table_is_quoted(script, report):
    for experiment, quoted in report.PAPER.items():
        assert list(quoted) == list(script.EXPERIMENTS[experiment])
    assert set(report.TITLES) == set(script.EXPERIMENTS)


def test_plot_shows_every_seed(report, tmp_path):
    one = report.Result("implicit", "off", 0, 0.2, 0.4)
    many = [replace(one, setting=s, seed=i) for s in ("off", "on") for i in range(3)]
    report.draw(many, tmp_path / "plot.png")
    report.draw([*many[:5], replace(many[5], map50_95=0.9)], tmp_path / "other.png")
    assert (tmp_path / "plot.png").read_bytes() != (tmp_path / "other.png").read_bytes()
