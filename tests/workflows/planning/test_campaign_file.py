"""Campaign files: every mistake is one line with the key, and the overrides work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from campaigns import PROJECT, nano, write_campaign
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from apps.base.errors import UserMistake
from workflows.planning.absolute_paths import absolute_model
from workflows.planning.campaign import Campaign
from workflows.planning.campaign_file import as_plain, as_yaml, differences, load_campaign, read_campaign
from workflows.planning.overrides import apply_set, choose_sites
from workflows.planning.shares import expanded, share_tasks
from workflows.strategies import SECTIONS

READY_MADE = sorted((PROJECT / "workflows" / "campaigns").glob("*.yaml"))


def saved(folder: Path, raw: object) -> Path:
    path = folder / "c.yaml"
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize("path", READY_MADE, ids=lambda p: p.stem)
def test_ready_made_campaigns_load(path: Path) -> None:
    campaign = load_campaign(path)
    assert len(campaign.sites) == 4 and campaign.name in path.stem


def test_the_reference_campaign_has_the_settings_of_the_paper() -> None:
    campaign = load_campaign(PROJECT / "workflows" / "campaigns" / "smolinstruct_llama2_7b.yaml")
    assert campaign.rounds == 8 and campaign.model.adapter is None and campaign.model.dtype == "float32"
    assert campaign.training.learning_rate == 1e-5 and campaign.training.weight_decay == 0.01
    assert campaign.training.precision == "bf16" and campaign.training.steps == 30
    assert campaign.data.max_tokens == 512 and campaign.data.loss_on == "answer"
    assert list(campaign.sites) == ["perlmutter", "polaris", "aurora", "frontier"]


def test_the_two_campaigns_of_four_machines_train_the_same() -> None:
    one, other = (as_plain(load_campaign(path)) for path in READY_MADE if path.stem.startswith("smolinstruct"))
    assert {key.split(".")[0] for key in differences(one, other)} == {"name", "server", "evaluation", "sites"}
    assert differences(one["sites"], other["sites"]) == {"polaris.route": (None, "globus")}


SEVEN = {f"s{k}": {"config": "local", "tasks": ["chemical_reaction"]} for k in range(7)}
MISTAKES = [
    ({"trainning": {}}, "trainning: unknown key, did you mean 'training'?"),
    ({"training": {"steps": 1, "learning_rate": 1, "stepz": 2}}, "training.stepz: unknown key, did you mean 'steps'?"),
    ({"training": {"learning_rate": 1}}, "training.steps: missing"),
    ({"training": {"steps": "many", "learning_rate": 1}}, "training.steps: input should be a valid integer"),
    ({"training": {"steps": 0, "learning_rate": 1}}, "training.steps: input should be greater than 0, got 0"),
    ({"model": {"source": "tiny"}}, "model.tiny: needed with 'source: tiny'"),
    ({"model": {"source": "x", "tiny": {}}}, "model.tiny: only goes with 'source: tiny'"),
    ({"model": {"source": "x", "adapter": {"method": "mean"}}}, "model.adapter.method: input should be 'fedit', 'ffa'"),
    ({"data": {"prompt": "no place"}}, "data.prompt: must contain {input}"),
    ({"strategy": {"quorum": 3}}, "strategy.quorum: 3 is more than the 2 sites"),
    ({"strategy": {"name": "fedbuf"}}, "strategy.name: there is no strategy 'fedbuf', did you mean 'fedbuff'?"),
    ({"strategy": {"name": "sgd"}}, "strategy.name: there is no strategy 'sgd'; known: fedavg, fedprox, "),
    ({"strategy": {"name": "fedbuff", "bufer": 2}}, "strategy.bufer: unknown key, did you mean 'buffer'?"),
    ({"strategy": {"name": "fedbuff", "quorum": 2}}, "strategy.quorum: unknown key; known: name, buffer, rate"),
    ({"strategy": {"name": "fedbuff", "staleness": {"knd": "hinge"}}}, "strategy.staleness.knd: unknown key, did you"),
    ({"strategy": {"name": "fedbuff", "buffer": 0}}, "strategy.buffer: input should be greater than 0, got 0"),
    ({"strategy": {"name": "fedadam", "quorum": 3}}, "strategy.quorum: 3 is more than the 2 sites"),
    ({"strategy": {"rule": "median"}}, "strategy: weights: median counts all sites alike; set 'weights: equal'"),
    (
        {"strategy": {"rule": "median", "weights": "equal"}},
        "strategy.rule: median with 1 bad site needs 4 updates, a round may have 2 (sites",
    ),
    (
        {"strategy": {"rule": "krum", "weights": "equal", "quorum": 6, "bad_sites": 2}, "sites": SEVEN},
        "strategy.rule: krum with 2 bad sites needs 7 updates, a round may have 6 (sites",
    ),
    (
        {"strategy": {"name": "fednova", "rule": "krum", "weights": "equal"}, "sites": SEVEN},
        "strategy: rule: fednova is a mean; a robust rule needs another strategy",
    ),
    (
        {
            "strategy": {"rule": "trimmed_mean", "weights": "equal"},
            "model": {"source": "x", "adapter": {"method": "fedit"}},
            "sites": SEVEN,
        },
        "strategy.rule: trimmed_mean of the factors of fedit says nothing of their product; use",
    ),
    (
        {"strategy": "fedbuff", "checks": {"max_loss_increase": 0.5}},
        "checks.max_loss_increase: needs a strategy with rounds, fedbuff has none",
    ),
    ({"strategy": {"name": "fedbuff", "rule": "median"}}, "strategy.rule: unknown key; known: name, buffer"),
    ({"strategy": {"name": "scaffold"}}, "strategy.name: scaffold corrects the gradients of plain SGD, and the sites"),
    (
        {"model": {"source": "x", "adapter": {"method": "svd"}}, "strategy": {"name": "fedasync"}},
        "model.adapter.method: svd can only average the updates of one round, fedasync also sums earlier models",
    ),
    ({"sites": {}}, "sites: "),
    ({"model": {"source": "tiny", "tiny": {"width": 7}}}, "model.tiny.width: must be a multiple of 4"),
    ({"training": {"steps": 1, "learning_rate": float("inf")}}, "training.learning_rate: "),
    (
        {
            "model": {"source": "x", "adapter": {"method": "flora"}},
            "training": {"steps": 1, "learning_rate": 1, "keep_optimizer": True},
        },
        "training.keep_optimizer: flora",
    ),
    ({"name": "../up"}, "name: string should match"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_a_mistake_is_one_line_with_file_and_key(tmp_path: Path, change: dict, message: str) -> None:
    path = saved(tmp_path, nano(**change))
    with pytest.raises(UserMistake) as caught:
        load_campaign(path)
    assert str(caught.value).startswith(f"{path}: {message}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [1", "just words", "", "- 1", "a: b: c"])
def test_files_that_are_no_campaign(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserMistake, match=r"c\.yaml:"):
        load_campaign(saved(tmp_path, text))


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="there is no campaign file"):
        load_campaign(tmp_path / "none.yaml")
    with pytest.raises(UserMistake, match="cannot be read"):
        load_campaign(tmp_path)


def test_set_reads_values_as_yaml_and_creates_missing_sections(tmp_path: Path) -> None:
    sets = ["training.steps=7", "data.tasks=[retrosynthesis]", "checks.max_update_norm=null", "sites.aurora.threads=2"]
    campaign = load_campaign(saved(tmp_path, nano()), sets)
    assert campaign.training.steps == 7 and campaign.data.tasks == ["retrosynthesis"]
    assert campaign.sites["aurora"].settings == {"threads": 2}


def test_a_key_that_is_set_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = saved(tmp_path, "name: x\nrounds: 2\ntraining:\n  steps: 3\nrounds: 6\n")
    with pytest.raises(UserMistake, match=r"c\.yaml: line 5: not valid YAML: 'rounds' is set twice"):
        load_campaign(path)


def test_a_key_that_is_a_list_is_a_mistake_like_others(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="not valid YAML"):
        load_campaign(saved(tmp_path, "name: x\n? [a, b]\n: 3\n"))


def test_another_machine_for_a_site_keeps_the_settings_that_it_has(tmp_path: Path) -> None:
    cluster = {"config": "slurm", "partition": "gpu", "storage_root": "/s", "threads": 2, "tasks": ["retrosynthesis"]}
    path = saved(tmp_path, nano(sites={"aurora": cluster}))
    moved = load_campaign(path, ["sites.aurora.config=local"]).sites["aurora"]
    assert moved.settings == {"storage_root": "/s", "threads": 2} and moved.tasks == ["retrosynthesis"]
    typo = load_campaign(path, ["sites.aurora.partitoin=debug", "sites.aurora.config=local"]).sites["aurora"]
    assert "partitoin" in typo.settings  # message as a mistake, not lost without a word


@pytest.mark.parametrize("name", [name for name in SECTIONS if name != "scaffold"])
def test_every_strategy_is_chosen_by_its_name(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, nano(strategy={"name": "fedavg", "weights": "equal", "quorum": 1}))
    campaign = load_campaign(path, [f"strategy.name={name}"])
    assert type(campaign.strategy) is SECTIONS[name]
    settings = {"weights": "equal", "quorum": 1}
    kept = {key: value for key, value in settings.items() if key in SECTIONS[name].model_fields}
    assert kept.items() <= campaign.strategy.model_dump().items()
    assert load_campaign(saved(tmp_path, nano(strategy=name))).strategy.model_dump()["name"] == name
    assert as_plain(load_campaign(saved(tmp_path, as_yaml(campaign)))) == as_plain(campaign)


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
def test_a_mean_of_one_round_fits_every_adapter(tmp_path: Path, strategy: str) -> None:
    adapted = {"source": "x", "adapter": {"method": "flora"}}
    assert load_campaign(saved(tmp_path, nano(model=adapted, strategy=strategy))).model.adapter is not None


@pytest.mark.parametrize("text", ["training.steps", "=3", "rounds.x=3", "seed=[1"])
def test_a_wrong_set_is_reported(text: str) -> None:
    with pytest.raises(UserMistake, match="--set"):
        apply_set({"rounds": 3}, text)


def test_sites_can_be_chosen_and_replaced() -> None:
    known = {"a": {"config": "local", "tasks": ["t"]}, "b": {"config": "local"}}
    assert choose_sites(known, "b") == {"b": {"config": "local"}}
    assert choose_sites(known, "a = polaris") == {"a": {"config": "polaris", "tasks": ["t"]}}
    with pytest.raises(UserMistake, match="at least one"):
        choose_sites(known, " , ")
    with pytest.raises(UserMistake, match="no site 'local'"):
        choose_sites(known, "local, my/cluster.py")


def test_the_tasks_of_sites_that_are_left_out_go_to_no_other_site(tmp_path: Path) -> None:
    entries = {
        "names": {"config": "local", "tasks": ["name_conversion"]},
        "reactions": {"config": "local", "tasks": ["chemical_reaction"]},
        "one": {"config": "local"},
        "other": {"config": "local"},
    }
    path = saved(tmp_path, nano(sites=entries, data={}))

    def shares(sites: str | None) -> dict[str, tuple[str, ...]]:
        campaign = read_campaign(path, sites=sites)
        return share_tasks(campaign, expanded("data.tasks", None, "embedded"))

    with_all, with_two = shares(None), shares("names,one")
    assert set(with_two["one"]) == {*with_all["one"], *with_all["other"]}  # what the campaign gives to no named site
    assert with_two["names"] == with_all["names"]
    taken = {task for name in ("names", "reactions") for task in with_all[name]}
    assert not taken & set(shares("one")["one"])


def test_a_text_is_set_as_it_stands() -> None:
    raw: dict[str, Any] = {}
    for text in ("data.prompt=Q: {input} A:", "name=123", "model.source=0123", "rounds=3", 'data.source="a: b"'):
        apply_set(raw, text)
    assert raw == {
        "data": {"prompt": "Q: {input} A:", "source": "a: b"},
        "name": "123",
        "model": {"source": "0123"},
        "rounds": 3,
    }
    apply_set(raw, 'data.prompt="Q: {input}\\nA:"')
    assert raw["data"]["prompt"] == "Q: {input}\nA:"


def test_paths_do_not_depend_on_the_folder_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch job starts elsewhere; the records of a site behind Globus are not on this machine at all."""
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    entries = {
        "here": {"config": "my/cluster.py", "data": "records", "model": "~/model"},
        "there": {"config": "local", "route": "globus", "data": "~/records", "model": "./model"},
    }
    own_block = {"site": {"config": "my/cluster.py", "nodes": 2}}
    changes = {"data": {"source": "../data.zip"}, "model": {"source": "models/mine"}, "server": own_block}
    campaign = read_campaign(saved(tmp_path, nano(sites=entries, **changes)))
    assert getattr(campaign.server.site, "config", "") == str(tmp_path / "my" / "cluster.py")
    assert campaign.data.source == str(tmp_path.parent / "data.zip")
    assert campaign.model.source == str(tmp_path / "models" / "mine")
    here, there = campaign.sites["here"], campaign.sites["there"]
    assert (here.data, here.model) == (str(tmp_path / "records"), "/home/me/model")
    assert here.config == str(tmp_path / "my" / "cluster.py")
    assert (there.data, there.model) == ("~/records", "./model")
    for name in ("org/model", "gpt2", "tiny", "smollm2-135m-instruct"):
        assert absolute_model(name) == name


@pytest.mark.parametrize(
    "prompt", ['{"question": "{input}"}', "\\frac{1}{2 x} {input}", "[INST] {input} [/INST]", "{ {input} }"]
)
def test_braces_in_a_prompt_are_text(prompt: str) -> None:
    assert Campaign.model_validate(nano(data={"prompt": prompt})).data.prompt == prompt


@pytest.mark.parametrize(
    "prompt", ["{{input}}", "{ input }", "{input}{input}", "{Input}", "{}", "{0} {input}", "{output}", "no place"]
)
def test_a_prompt_that_would_be_trained_on_as_text_is_refused(prompt: str) -> None:
    with pytest.raises(ValidationError, match="data.prompt"):
        Campaign.model_validate(nano(data={"prompt": prompt}))


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    path = saved(tmp_path, nano(rounds=0, seed="x", evaluation=None, stepz=3))
    with pytest.raises(UserMistake) as refused:
        read_campaign(path)
    lines = str(refused.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["stepz", "seed", "rounds", "evaluation"]
    assert lines[-1].endswith("evaluation: a section with keys (site, split, per_task, batch_size, ...), got None")


def test_a_campaign_written_and_read_is_the_same(tmp_path: Path) -> None:
    campaign = Campaign.model_validate(nano())
    assert as_plain(read_campaign(saved(tmp_path, as_yaml(campaign)))) == as_plain(campaign)


def test_a_default_has_the_type_that_it_has_when_it_is_read_again(tmp_path: Path) -> None:
    """A resumed driver must identify a task by exactly the same values, or it would repeat all work."""
    campaign = load_campaign(saved(tmp_path, nano(model={"source": "x", "adapter": {}}, strategy="fedecho")))
    again = load_campaign(saved(tmp_path, as_yaml(campaign)))
    assert repr(as_plain(again)) == repr(as_plain(campaign))
    assert isinstance(campaign.training.checkpoint_s, float)


plain = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
)
mappings = st.dictionaries(st.text("abc", min_size=1, max_size=2), plain, max_size=3)


@given(mappings, mappings)
def test_differences_are_empty_for_equals_and_mirror_each_other(one: dict, other: dict) -> None:
    assert differences(one, one) == {}
    there, back = differences(one, other), differences(other, one)
    assert there == {key: (old, new) for key, (new, old) in back.items()}
    assert bool(there) == (one != other)


@pytest.mark.parametrize("text", ["2:30", "24:00", "1:00:00"])
def test_a_time_of_day_is_a_text_and_no_number_in_base_sixty(tmp_path: Path, text: str) -> None:
    path = write_campaign(tmp_path)
    path.write_text(path.read_text().replace("name: nano", "name: nano\nchecks: {max_update_norm: 1e3}"))
    campaign = load_campaign(path, [f"sites.aurora.walltime={text}", "training.learning_rate=1e-4"])
    assert campaign.sites["aurora"].settings["walltime"] == text
    assert campaign.training.learning_rate == 1e-4 and campaign.checks.max_update_norm == 1000


def test_a_setting_for_an_unknown_site_is_reported(tmp_path: Path) -> None:
    path = write_campaign(tmp_path)
    with pytest.raises(UserMistake, match="--set sites.arora: there is no such site, did you mean 'aurora'"):
        load_campaign(path, ["sites.arora.threads=2"], "aurora")
    assert list(load_campaign(path, ["sites.frontier.threads=2"], "aurora").sites) == ["aurora"]


@pytest.mark.parametrize("account", ["12345", "0123", "12e3", "1_000", "2026-08-01", "on", "0x1f"])
def test_an_account_that_looks_like_a_number_keeps_its_text(tmp_path: Path, account: str) -> None:
    path = write_campaign(tmp_path)
    for sets in ([f"sites.aurora.account={account}"], [f"sites.aurora={{account: {account}, queue: {account}}}"]):
        campaign = load_campaign(path, sets)
        assert campaign.sites["aurora"].settings["account"] == account
        written = tmp_path / "written.yaml"
        written.write_text(as_yaml(campaign))
        assert load_campaign(written).sites["aurora"].settings["account"] == account


def test_other_values_are_read_as_before(tmp_path: Path) -> None:
    sets = ["rounds=2", "sites.aurora.queue=null", "sites.aurora={nodes: 2, options: [-C nvme]}"]
    campaign = load_campaign(write_campaign(tmp_path), sets)
    assert campaign.rounds == 2 and campaign.sites["aurora"].settings == {"nodes": 2, "options": ["-C nvme"]}
    assert load_campaign(write_campaign(tmp_path), sets[:2]).sites["aurora"].settings["queue"] is None
