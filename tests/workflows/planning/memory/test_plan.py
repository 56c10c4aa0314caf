"""Memory plans: needs compared with known values, the order of ways, the reference paper's result, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zero_reference import zero_plan

from apps.base.errors import UserMistake
from site_configs.library.site import Block, Node, Queue, Ranks, Site
from site_configs.local import site as local_site
from workflows.planning.campaign import ParallelSection
from workflows.planning.memory.campaign import (
    describe_site,
    idle_text,
    plan_memory,
    samples_per_s,
    spread_text,
    training_setup,
)
from workflows.planning.memory.estimate import Choice, Machine, TrainingSetup, in_flight, need_of
from workflows.planning.memory.model import ModelShape, shape_of
from workflows.planning.memory.plan import (
    ORDER,
    MemoryPlan,
    candidates,
    first_fit,
    fits,
    machine_of,
    micro_batches,
    plan_site,
)
from workflows.planning.memory.speed import Rates, collective_bytes, estimate, operations, rates_of

AUTO = ParallelSection()
FLOAT, MIXED, BFLOAT = TrainingSetup(4, False, 512), TrainingSetup(4, True, 512), TrainingSetup(2, False, 512)
POLARIS = Machine(1, 4, int(40e9), int(512e9), True)
PERLMUTTER_80 = Machine(1, 4, int(80e9), int(256e9), True)
FRONTIER = Machine(1, 8, int(64e9), int(512e9), True)
AURORA = Machine(1, 12, int(64e9), int(1024e9), True)
H200 = Machine(1, 8, int(141e9), int(2000e9), True)
A100 = Rates(312e12, 300e9, 50e9, 32e9, 205e9)
LORA = {"method": "fedit", "rank": 16, "alpha": 16.0, "dropout": 0.0, "targets": "all-linear", "last_layers": None}


def spec(source: str, adapter: dict | None = None, tiny: dict | None = None) -> dict:
    return {"source": source, "dtype": "float32", "seed": 1, "adapter": adapter, "tiny": tiny}


def shape(source: str, adapter: dict | None = None) -> ModelShape:
    return _shape(source, json.dumps(adapter))


@lru_cache
def _shape(source: str, adapter: str) -> ModelShape:
    found = shape_of(spec(source, json.loads(adapter)))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def llama() -> ModelShape:
    return shape("meta-llama/Llama-2-7b-hf")


def gpu_site(machine: Machine, name: str = "polaris", **changes) -> Site:
    site = local_site(name, Path("runs/x"))
    node = Node(32, machine.host_bytes, machine.ranks_per_node, machine.device_bytes)
    ranks = Ranks(machine.ranks_per_node, ("mpiexec", "-n", "{ranks}"), "nccl", "hsn0")
    return replace(site, device="cuda", node=node, ranks=ranks, machine=f"{name} (test)", **changes)


def chosen(
    model: ModelShape, setup: TrainingSetup, machine: Machine, section: ParallelSection = AUTO, batch: int = 0
) -> Choice:
    sizes = micro_batches(batch or 4 * machine.ranks, machine.ranks, section)
    found = first_fit(model, setup, machine, list(candidates(machine, sizes, section)))
    assert found is not None
    return found[0]


# --- sums -------------------------------------------------------------------------------------------------------


def states(model: ModelShape, setup: TrainingSetup, machine: Machine, sharding: str) -> float:
    need = need_of(model, setup, machine, Choice(sharding, False, False, 1))
    return need.weights + need.gradients + need.optimizer


def test_bytes_per_parameter(llama):
    one = replace(POLARIS, ranks_per_node=1)
    assert states(llama, MIXED, one, "none") == 16 * llama.parameters
    assert states(llama, BFLOAT, one, "none") == 8 * llama.parameters  # without float32 master weights
    assert states(llama, MIXED, POLARIS, "ddp") == 16 * llama.parameters
    assert states(llama, MIXED, POLARIS, "full_shard") == 4 * llama.parameters
    assert states(llama, MIXED, POLARIS, "shard_grad_op") == 4 * llama.parameters


def test_adapters_are_float32_over_the_bases_type():
    adapted = shape("meta-llama/Llama-2-7b-hf", LORA)
    assert states(adapted, BFLOAT, POLARIS, "ddp") == 2 * adapted.parameters + 16 * adapted.trained
    assert states(adapted, BFLOAT, POLARIS, "full_shard") == pytest.approx(
        (2 * adapted.parameters + 16 * adapted.trained) / 4
    )


def test_bytes_in_flight(llama):
    assert in_flight(llama, FLOAT, "none", 4) == 0
    assert in_flight(llama, MIXED, "none", 4) == 2 * llama.parameters  # autocast's copies
    assert in_flight(llama, FLOAT, "ddp", 4) == 4 * llama.parameters  # buckets
    gathered_once = in_flight(llama, MIXED, "shard_grad_op", 4)
    gathered_twice = in_flight(llama, MIXED, "full_shard", 4)
    assert gathered_once - gathered_twice == 2 * (llama.parameters - llama.outside - 2 * llama.layer)
    assert gathered_once > 2 * llama.parameters


def test_offloading_moves_the_states_to_the_host(llama):
    here = need_of(llama, MIXED, POLARIS, Choice("full_shard", False, False, 6))
    there = need_of(llama, MIXED, POLARIS, Choice("full_shard", False, True, 6))
    assert (there.weights, there.gradients, there.optimizer) == (0, 0, 0)
    assert there.host - here.host == 16 * llama.parameters
    assert here.host == 4 * 4 * llama.parameters  # each rank loads all weights
    assert there.gathered == here.gathered


def test_the_update_needs_memory_even_with_small_batches():
    small = replace(shape("facebook/opt-125m"), vocabulary=1)
    need = need_of(small, replace(FLOAT, length=1), replace(POLARIS, ranks_per_node=1), Choice("none", False, False, 1))
    assert need.gathered + need.activations == 4 * small.parameters


ways = st.builds(
    Choice,
    sharding=st.sampled_from(["none", "ddp", "shard_grad_op", "full_shard"]),
    checkpoint=st.booleans(),
    offload=st.just(False),
    micro_batch=st.integers(1, 32),
)
jobs = st.sampled_from([FLOAT, MIXED, BFLOAT])
shapes = st.sampled_from(["facebook/opt-1.3b", "meta-llama/Llama-2-7b-hf"]).map(shape)


@settings(max_examples=60, deadline=None)
@given(model=shapes, setup=jobs, choice=ways, nodes=st.integers(1, 8))
def test_more_nodes_never_need_more_and_more_samples_never_less(model, setup, choice, nodes):
    machine = replace(FRONTIER, nodes=nodes)
    need = need_of(model, setup, machine, choice)
    assert need_of(model, setup, replace(machine, nodes=nodes + 1), choice).device <= need.device
    assert need_of(model, setup, machine, replace(choice, micro_batch=choice.micro_batch + 1)).device >= need.device
    assert min(vars(need).values()) >= 0


@settings(max_examples=60, deadline=None)
@given(model=shapes, setup=jobs, size=st.integers(1, 32), machine=st.sampled_from([POLARIS, FRONTIER, H200]))
def test_the_plan_is_the_first_that_fits(model, setup, size, machine):
    choices = list(candidates(machine, [size], AUTO))
    found = first_fit(model, setup, machine, choices)
    if found is None:
        assert not any(fits(need_of(model, setup, machine, choice), machine) for choice in choices)
        return
    choice, need = found
    assert fits(need, machine)
    for earlier in choices[: choices.index(choice)]:
        assert not fits(need_of(model, setup, machine, earlier), machine)


@settings(max_examples=60, deadline=None)
@given(model=shapes, setup=jobs, size=st.integers(1, 32))
def test_sharding_more_and_computing_again_both_save_memory(model, setup, size):
    def device(sharding: str, checkpoint: bool) -> float:
        return need_of(model, setup, FRONTIER, Choice(sharding, checkpoint, False, size)).device

    assert device("full_shard", False) <= device("shard_grad_op", False) <= device("ddp", False) * 1.01
    assert device("full_shard", True) <= device("full_shard", False)


# --- which way --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "setup", "machine", "wanted"),
    [
        ("facebook/opt-125m", MIXED, POLARIS, ("ddp", False, False)),
        ("facebook/opt-350m", MIXED, FRONTIER, ("ddp", False, False)),
        ("facebook/opt-1.3b", MIXED, AURORA, ("ddp", False, False)),
        ("facebook/opt-2.7b", MIXED, POLARIS, ("shard_grad_op", False, False)),
        ("facebook/opt-2.7b", MIXED, H200, ("ddp", False, False)),
        ("facebook/opt-6.7b", MIXED, FRONTIER, ("shard_grad_op", False, False)),
        ("meta-llama/Llama-2-7b-hf", MIXED, POLARIS, ("full_shard", False, True)),
        ("meta-llama/Llama-2-7b-hf", MIXED, FRONTIER, ("shard_grad_op", False, False)),
        ("meta-llama/Llama-2-7b-hf", MIXED, AURORA, ("shard_grad_op", False, False)),
        ("meta-llama/Llama-2-13b-hf", MIXED, H200, ("shard_grad_op", False, False)),
    ],
)
def test_full_training_of_four_samples_of_512_tokens_a_device(source, setup, machine, wanted):
    found = chosen(shape(source), setup, machine)
    assert (found.sharding, found.checkpoint, found.offload) == wanted
    assert found.micro_batch == 4


@pytest.mark.parametrize("machine", [POLARIS, FRONTIER, AURORA, H200])
@pytest.mark.parametrize("source", ["facebook/opt-2.7b", "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-13b-hf"])
def test_adapters_never_need_sharding_on_these_machines(source, machine):
    assert chosen(shape(source, LORA), BFLOAT, machine).sharding == "ddp"


def test_13b_needs_more_nodes_of_40_gb_where_nothing_is_offloaded():
    model, section = shape("meta-llama/Llama-2-13b-hf"), ParallelSection(offload=False)
    assert first_fit(model, MIXED, POLARIS, list(candidates(POLARIS, [4, 2, 1], section))) is None
    assert chosen(model, MIXED, replace(POLARIS, nodes=4), section).sharding == "full_shard"


def test_the_reference_papers_result_with_its_own_settings(llama):
    """Devices of 40 GB need ZeRO-3 with the optimiser on the host, those of 64 and 80 GB run ZeRO-1."""
    polaris = zero_plan(llama, POLARIS, 512, 6)
    assert (polaris.stage, polaris.offload) == (3, True)
    for machine in (FRONTIER, AURORA, PERLMUTTER_80):
        found = zero_plan(llama, machine, 512, 6)
        assert (found.stage, found.offload) == (1, False)
        assert found.nbytes < 0.92 * machine.device_bytes
    assert zero_plan(llama, replace(POLARIS, device_bytes=int(10e9)), 512, 6) is None


def test_the_result_with_our_settings(llama):
    """One node of 40 GB devices offloads at the paper's micro-batch; more nodes need not, unlike in the paper."""
    section = ParallelSection(micro_batch=6)
    small = chosen(llama, MIXED, POLARIS, section)
    assert (small.sharding, small.offload, small.micro_batch) == ("full_shard", True, 6)
    for machine in (FRONTIER, AURORA, PERLMUTTER_80):
        assert chosen(llama, MIXED, machine, section) == Choice("shard_grad_op", False, False, 6)
    two = chosen(llama, MIXED, replace(POLARIS, nodes=2), section)
    assert (two.sharding, two.checkpoint, two.offload) == ("shard_grad_op", True, False)


def test_the_throughput_ratio_of_80_to_40_gb_is_near_the_papers(llama):
    def speed(machine: Machine) -> float:
        choice = chosen(llama, MIXED, machine, ParallelSection(micro_batch=6))
        return estimate(llama, MIXED, machine, choice, A100).samples_per_s

    assert 5 < speed(PERLMUTTER_80) / speed(POLARIS) < 8


def test_the_estimate_for_64_nodes_is_near_the_papers(llama):
    """The paper reports 1,200 samples/s for 64 nodes of Perlmutter with 80 GB per device."""
    step = estimate(
        llama,
        MIXED,
        replace(PERLMUTTER_80, nodes=64),
        Choice("shard_grad_op", False, False, 6),
        replace(A100, network=100e9),
    )
    assert 600 < step.samples_per_s < 2400
    assert step.offload_s == 0


def test_the_order_is_from_fast_to_slow(llama):
    for checkpoint in (False, True):
        ways = [Choice(s, c, o, 6) for s, c, o in ORDER if c == checkpoint]
        speeds = [estimate(llama, MIXED, replace(POLARIS, nodes=4), way, A100).samples_per_s for way in ways]
        in_turn = [speed for way, speed in zip(ways, speeds, strict=True) if way.sharding != "ddp"]
        assert in_turn == sorted(in_turn, reverse=True)


def test_operations_and_traffic(llama):
    adapted = shape("meta-llama/Llama-2-7b-hf", LORA)
    plain, again = Choice("ddp", False, False, 1), Choice("ddp", True, False, 1)
    assert operations(llama, plain) == 6 * llama.parameters
    assert operations(llama, again) == 8 * llama.parameters
    assert operations(adapted, plain) == 4 * llama.parameters
    assert collective_bytes(llama, MIXED, plain) == 8 * llama.parameters
    assert collective_bytes(llama, MIXED, Choice("shard_grad_op", False, False, 1)) == 6 * llama.parameters
    assert collective_bytes(llama, MIXED, Choice("full_shard", False, False, 1)) == 8 * llama.parameters
    assert collective_bytes(adapted, BFLOAT, plain) == 8 * adapted.trained


def test_one_rank_moves_nothing(llama):
    one = Machine(1, 1, int(141e9), int(1e12), True)
    assert estimate(llama, BFLOAT, one, Choice("none", False, False, 1), A100).collective_s == 0


def test_rates_are_known_for_the_papers_machines_only():
    assert rates_of(gpu_site(POLARIS, "polaris")).network == 50e9
    assert rates_of(replace(gpu_site(POLARIS, "mine"), machine="Aurora (ALCF), 2 nodes")).flops == 419e12
    assert rates_of(gpu_site(POLARIS, "mine")) is None
    assert rates_of(local_site("perlmutter", Path("runs/x"))) is None  # processes here under a machine's name


# --- what a campaign may fix ------------------------------------------------------------------------------------


def test_micro_batches_divide_a_ranks_share():
    assert micro_batches(48, 8, AUTO) == [6, 3, 2, 1]
    assert micro_batches(6, 8, AUTO) == [1]
    assert micro_batches(7, 2, AUTO) == [4, 2, 1]
    assert micro_batches(48, 8, ParallelSection(micro_batch=5)) == [5]


def test_a_smaller_micro_batch_comes_before_offloading(llama):
    choices = list(candidates(POLARIS, [6, 3], AUTO))
    first_offload = next(i for i, c in enumerate(choices) if c.offload)
    assert all(not c.offload for c in choices[:first_offload])
    assert {c.micro_batch for c in choices[:first_offload]} == {6, 3}
    a100 = replace(POLARIS, device_bytes=42_405_855_232)  # what torch sees of an A100 with 40 GB
    found = chosen(llama, MIXED, a100, ParallelSection(checkpoint_activations=False), batch=24)
    assert found == Choice("full_shard", False, False, 1)


@pytest.mark.parametrize(
    ("section", "wanted"),
    [
        (
            {"sharding": "full_shard"},
            {
                ("full_shard", False, False),
                ("full_shard", True, False),
                ("full_shard", False, True),
                ("full_shard", True, True),
            },
        ),
        ({"sharding": "ddp", "checkpoint_activations": True}, {("ddp", True, False)}),
        ({"offload": True}, {("full_shard", False, True), ("full_shard", True, True)}),
        ({"sharding": "none"}, set()),
    ],
)
def test_a_campaigns_settings_are_followed(section, wanted):
    found = {(c.sharding, c.checkpoint, c.offload) for c in candidates(POLARIS, [1], ParallelSection(**section))}
    assert found == wanted


def test_one_rank_is_not_spread():
    one = replace(POLARIS, ranks_per_node=1)
    assert {c.sharding for c in candidates(one, [1], AUTO) if not c.offload} == {"none"}
    assert {c.sharding for c in candidates(one, [1], ParallelSection(sharding="ddp"))} == {"none"}
    assert not [c for c in candidates(replace(one, accelerator=False), [1], AUTO) if c.offload]


# --- sites ------------------------------------------------------------------------------------------------------


def test_a_site_on_this_machine_trains_in_one_rank(tmp_path):
    small = shape_of(spec("tiny", tiny={"width": 32, "layers": 1}))
    one = plan_site(local_site("aurora", tmp_path), small, FLOAT, 8, AUTO)
    two = plan_site(local_site("aurora", tmp_path, ranks=2), small, FLOAT, 8, AUTO)
    assert one.choice == Choice("none", False, False, 8)
    assert two.choice == Choice("ddp", False, False, 4)
    assert two.need.device * 2 < two.machine.host_bytes
    assert machine_of(local_site("aurora", tmp_path)).device_bytes == machine_of(local_site("a", tmp_path)).host_bytes


def test_the_plain_values_for_the_trainer(llama):
    site = gpu_site(POLARIS)
    plan = plan_site(site, llama, MIXED, 24, ParallelSection(micro_batch=6))
    assert plan.parallel(site) == {
        "nodes": 1,
        "ranks_per_node": 4,
        "sharding": "full_shard",
        "offload": True,
        "checkpoint_activations": False,
        "micro_batch": 6,
        "backend": "nccl",
        "launch": ["mpiexec", "-n", "{ranks}"],
        "interface": "hsn0",
    }
    json.dumps(plan.parallel(site))


def test_the_plain_values_are_those_that_the_trainer_declares(llama):
    from apps.ranks.parallel import Parallel

    site = gpu_site(H200)
    assert set(plan_site(site, llama, MIXED, 8, AUTO).parallel(site)) == set(Parallel.__annotations__)


def test_an_unchecked_plan_has_a_note_and_is_cautious(llama):
    unknown_model = plan_site(gpu_site(POLARIS), None, MIXED, 8, AUTO)
    assert unknown_model.need is None
    assert unknown_model.choice == Choice("full_shard", True, False, 1)
    assert "model's configuration is unknown" in unknown_model.note
    unknown_device = plan_site(gpu_site(replace(POLARIS, device_bytes=0)), llama, MIXED, 8, AUTO)
    assert "device's memory is unknown" in unknown_device.note
    alone = plan_site(local_site("aurora", Path("runs/x")), None, FLOAT, 8, AUTO)
    assert alone.choice == Choice("none", False, False, 8)


def test_a_refusal_names_the_site_the_sum_and_what_would_fit(llama):
    section = ParallelSection(offload=False, micro_batch=6)
    with pytest.raises(UserMistake) as caught:
        plan_site(gpu_site(POLARIS), llama, MIXED, 24, section)
    text = str(caught.value)
    assert text.startswith(
        "site polaris: a model of 6.74 G parameters, all parameters trained on 4 ranks, needs at least"
    )
    assert "36.8 GB of 40 GB may be used" in text
    assert "parallel.sharding, offload and checkpoint_activations: auto" in text
    assert "sites.polaris.nodes: 2" in text
    assert "model.adapter (LoRA)" in text


def test_a_refusal_where_only_a_smaller_micro_batch_helps(llama):
    device = replace(POLARIS, device_bytes=int(18e9), host_bytes=0)
    with pytest.raises(UserMistake, match=r"parallel\.micro_batch: 1"):
        plan_site(gpu_site(device), llama, MIXED, 1200, ParallelSection(micro_batch=300))


def test_a_refusal_where_nothing_helps():
    giant = replace(shape("meta-llama/Llama-2-13b-hf"), layer=10**11, outside=10**12, parameters=10**13, trained=10**13)
    with pytest.raises(UserMistake, match="larger devices, or a smaller model"):
        plan_site(gpu_site(POLARIS), giant, MIXED, 4, AUTO)


def test_a_refusal_because_of_host_memory(llama):
    poor = replace(POLARIS, host_bytes=int(100e9))
    with pytest.raises(UserMistake, match="offloading and loading need 216 GB of 100 GB a host"):
        plan_site(gpu_site(poor), llama, MIXED, 4, AUTO)


def test_settings_that_leave_no_way():
    with pytest.raises(UserMistake, match="no way of training on 4 ranks at polaris"):
        plan_site(gpu_site(POLARIS), None, MIXED, 4, ParallelSection(sharding="none"))


# --- words ------------------------------------------------------------------------------------------------------


def test_the_text_of_a_campaigns_plans(tmp_path):
    from campaigns import nano

    from workflows.planning.campaign import Campaign
    from workflows.planning.plan import model_spec

    raw = nano(model={"source": "meta-llama/Llama-2-7b-hf", "dtype": "float32"})
    raw["training"] = {"steps": 3, "batch_size": 24, "learning_rate": 1e-5, "precision": "bf16"}
    campaign = Campaign.model_validate(raw | {"data": {"max_tokens": 512}})
    sites = {"polaris": gpu_site(POLARIS), "here": local_site("here", tmp_path)}
    assert training_setup(campaign) == MIXED
    plans = plan_memory(campaign, model_spec(campaign), {"polaris": sites["polaris"]})
    lines = describe_site(sites["polaris"], plans["polaris"], shape_of(model_spec(campaign)), MIXED)
    assert lines[0] == ("memory polaris", "1 node x 4 ranks, full_shard, optimiser on the host, micro-batch 6")
    assert lines[1][1].startswith("per rank: gathered 3.")
    assert lines[1][1].endswith("GB of 40 GB (67%)")
    assert lines[2][1] == "per host: 216 GB of 512 GB for loading and offloading"
    assert lines[3][1].endswith("samples/s of 512 tokens (an estimate)")


def test_the_text_of_an_unchecked_plan():
    plan = plan_site(gpu_site(POLARIS), None, MIXED, 8, AUTO)
    lines = describe_site(gpu_site(POLARIS), plan, None, MIXED)
    assert lines[1] == ("", "not checked: the model's configuration is unknown on this machine")
    assert "activations computed again" in spread_text(plan)


def spread_over(nodes: int, batch: int) -> tuple[MemoryPlan, float]:
    """Return the plan of Polaris for a small model, and the estimate of its speed."""
    queue = Queue("prod", 1, 64, 3600, date(2026, 8, 1), "a test")
    site = replace(gpu_site(POLARIS), block=Block("pbs", queue, nodes, 3600))
    small = shape_of(spec("tiny", tiny={"width": 32, "layers": 1}))
    plan = plan_site(site, small, FLOAT, batch, AUTO)
    rate = samples_per_s(site, plan, small, FLOAT)
    assert rate is not None
    return plan, rate


def test_ranks_without_a_sample_are_reported():
    told = {nodes: idle_text(spread_over(nodes, 6)[0]) for nodes in (1, 2, 4)}
    assert told[1] == ""
    assert told[4] == (
        "16 ranks share a batch of 6, 10 have nothing to do: use fewer nodes or a larger training.batch_size"
    )
    assert told[2].startswith("8 ranks share a batch of 6, 2 have nothing to do")
    assert idle_text(spread_over(1, 3)[0]).endswith(
        "1 has nothing to do: use fewer ranks or a larger training.batch_size"
    )


def test_idle_ranks_do_not_speed_up_the_estimate():
    speeds = [spread_over(nodes, 6)[1] for nodes in (2, 4, 8)]
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[2] == pytest.approx(speeds[0])  # as many samples at once, of the same size


@given(st.integers(1, 200), st.integers(1, 8))
def test_the_share_of_ranks_at_work(batch, nodes):
    plan = spread_over(nodes, batch)[0]
    most = max(len(range(rank, batch, plan.machine.ranks)) for rank in range(plan.machine.ranks))
    assert plan.occupancy * plan.machine.ranks * most == pytest.approx(batch)
    assert 0 < plan.occupancy <= 1 and (plan.idle_ranks > 0) == (batch < plan.machine.ranks)
