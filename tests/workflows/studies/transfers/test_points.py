"""What a transfer study moves: models and their files, trips, the budget, the room on disks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from apps.artifacts.store import artifact_path, sha256_file, verify
from apps.base.errors import UserMistake
from site_configs.library.site import Collection, Site
from site_configs.local import site as local_site
from workflows.planning.memory.model import known_config
from workflows.planning.storage import SPARE_BYTES
from workflows.studies.transfers.models import DEFAULT, LARGEST, SOURCES, file_bytes, model_of, own_shapes, write_model
from workflows.studies.transfers.points import (
    RoundTrip,
    StudyFile,
    check_budget,
    check_room,
    crossing,
    room_of,
    study_folder,
    traffic,
    trips_of,
)

MB = 10**6
# published sizes: arXiv 2205.01068 (OPT, rounded there), arXiv 2307.09288 (Llama 2)
PUBLISHED = {
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
}


def site(name: str, folder: Path, **changes) -> Site:
    return replace(local_site(name, folder), **changes)


def load(name: str = "small", parameters: int = MB) -> StudyFile:
    model = model_of(f"{name}={parameters}")
    return StudyFile(model, file_bytes(model, "bfloat16"))


# --- models and their files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEFAULT)
def test_models_have_their_published_numbers_of_parameters(name):
    model = model_of(name)
    assert model.parameters == PUBLISHED[name]
    assert file_bytes(model, "bfloat16") == pytest.approx(2 * PUBLISHED[name], rel=2e-4)
    assert file_bytes(model, "float32") - file_bytes(model, "bfloat16") == pytest.approx(2 * PUBLISHED[name], abs=1000)


def test_every_named_model_has_a_known_shape():
    assert all(known_config(source) for source in SOURCES.values())


def test_the_file_has_the_tensors_of_the_model():
    shapes = model_of("llama-2-7b").shapes
    assert shapes["model.embed_tokens.weight"] == (32000, 4096)
    assert shapes["model.layers.31.mlp.gate_proj.weight"] == (11008, 4096)
    assert "lm_head.weight" in shapes
    assert "lm_head.weight" not in model_of("opt-125m").shapes  # tied: once in a file


def test_a_model_of_ones_own_is_a_name_and_a_number():
    model = model_of("my-model=40_000_000")
    assert (model.name, model.source, model.parameters) == ("my-model", "", 40_000_000)


@given(st.integers(1, 5 * LARGEST))
def test_tensors_of_ones_own_have_the_parameters_asked_for(parameters):
    sizes = [size for (size,) in own_shapes(parameters).values()]
    assert sum(sizes) == parameters
    assert max(sizes) <= LARGEST


@pytest.mark.parametrize("text", ["opt-126m", "x=", "x=0", "x=-3", "=5", "x=1e6", "../x=5"])
def test_other_models_are_refused(text):
    with pytest.raises(UserMistake, match="--models: unknown model"):
        model_of(text)


def test_a_near_miss_gets_a_hint():
    with pytest.raises(UserMistake, match="did you mean 'llama-2-7b'"):
        model_of("lama-2-7b")


def test_the_file_is_a_safetensors_file_of_the_told_size_and_the_same_each_time(tmp_path):
    model, told = model_of("small=3_000_001"), []
    first = write_model(tmp_path / "a", model, "bfloat16", told.append)
    again = write_model(tmp_path / "b", model, "bfloat16", lambda _: None)
    other = write_model(tmp_path / "c", model_of("small=3_000_002"), "bfloat16", lambda _: None)
    assert first == again
    assert first["nbytes"] == file_bytes(model, "bfloat16") == artifact_path(tmp_path / "a", first).stat().st_size
    assert verify(tmp_path / "a", first) and sha256_file(artifact_path(tmp_path / "a", first)) == first["sha256"]
    assert other["sha256"] != first["sha256"]
    assert told == sorted(told) and told[-1] == 2 * model.parameters
    with safe_open(str(artifact_path(tmp_path / "a", first)), "pt") as found:
        assert found.get_slice("tensor.0").get_shape() == [3_000_001]
        assert found.get_slice("tensor.0").get_dtype() == "BF16"


def test_the_content_cannot_be_made_smaller(tmp_path):
    import zlib

    artifact = write_model(tmp_path, model_of("small=500_000"), "float32", lambda _: None)
    content = artifact_path(tmp_path, artifact).read_bytes()
    assert len(zlib.compress(content)) > 0.99 * len(content)


# --- trips ------------------------------------------------------------------------------------------------------


def test_small_files_go_first_and_sites_in_turn(tmp_path):
    sites = [site("a", tmp_path), site("b", tmp_path)]
    trips = trips_of(sites, [load("large", 9 * MB), load("small", MB)], 2, ())
    assert [(t.file.model.name, t.repeat, t.site.name) for t in trips] == [
        ("small", 1, "a"),
        ("small", 1, "b"),
        ("small", 2, "a"),
        ("small", 2, "b"),
        ("large", 1, "a"),
        ("large", 1, "b"),
        ("large", 2, "a"),
        ("large", 2, "b"),
    ]


def test_what_the_table_has_is_not_moved_again_but_halves_of_it_are(tmp_path):
    whole, half, none = trips_of([site("a", tmp_path)], [load()], 3, ())
    left = trips_of([site("a", tmp_path)], [load()], 3, {*whole.keys, half.keys[0]})
    assert [trip.repeat for trip in left] == [half.repeat, none.repeat]
    # the same model at another precision, or by another carrier, is another point
    other = StudyFile(load().model, load().nbytes + 1)
    assert len(trips_of([site("a", tmp_path)], [other], 3, set(whole.keys))) == 3
    assert len(trips_of([site("a", tmp_path, carrier="shared")], [load()], 3, set(whole.keys))) == 3


def test_what_will_move_is_told_for_each_site(tmp_path):
    trips = trips_of([site("a", tmp_path), site("b", tmp_path)], [load("x", 5 * MB), load("y", 50 * MB)], 2, ())
    first, second = traffic(trips, tmp_path)
    assert first.startswith("a: 440 MB in 4 trips there and back, copied, at most 100 MB at a time in ")
    assert first.endswith(str(tmp_path / "sites" / "a" / "in" / "transfer_study"))
    assert second.startswith("b: 440 MB")


def test_links_move_no_bytes(tmp_path):
    shared, copied = site("a", tmp_path, carrier="shared"), site("a", tmp_path)
    assert crossing(RoundTrip(shared, load(), 1), tmp_path) == 0
    assert crossing(RoundTrip(copied, load(), 1), tmp_path) == 2 * load().nbytes
    check_budget([RoundTrip(shared, load(), 1)], tmp_path, 1e-9)


def test_more_than_the_budget_is_refused_with_the_number_that_would_do(tmp_path):
    trips = trips_of([site("a", tmp_path)], [load("x", 2_600 * MB)], 1, ())
    check_budget(trips, tmp_path, 11)
    with pytest.raises(UserMistake, match=r"10.4 GB would move.* 10 GB of --budget-gb; nothing.*--budget-gb 11$"):
        check_budget(trips, tmp_path, 10)
    with pytest.raises(UserMistake, match=r"10.4 GB would move in all, more than the 10 kB of --budget-gb"):
        check_budget(trips, tmp_path, 1e-5)


# --- room -------------------------------------------------------------------------------------------------------


def test_each_carrier_needs_its_own_room(tmp_path):
    nbytes = load().nbytes
    far = site("a", tmp_path, carrier="globus", collection=Collection("x", tmp_path))
    assert room_of(RoundTrip(site("a", tmp_path), load(), 1), tmp_path) == {tmp_path: 3 * nbytes}
    assert room_of(RoundTrip(site("a", tmp_path, carrier="shared"), load(), 1), tmp_path) == {tmp_path: nbytes}
    assert room_of(RoundTrip(far, load(), 1), tmp_path) == {tmp_path: 2 * nbytes}


def test_a_site_on_another_disk_needs_one_copy_there(tmp_path):
    other = site("a", tmp_path, storage_root=Path("/dev/shm/no/such/folder"))
    room = room_of(RoundTrip(other, load(), 1), tmp_path / "not" / "yet")
    assert room == {tmp_path: 2 * load().nbytes, Path("/dev/shm"): load().nbytes}


def test_a_full_disk_is_told_before_anything_moves(tmp_path):
    trips = trips_of([site("a", tmp_path)], [load("x", 50 * MB), load("y", MB)], 2, ())
    enough = 3 * load("x", 50 * MB).nbytes + SPARE_BYTES
    check_room(trips, tmp_path, lambda _: enough)
    with pytest.raises(UserMistake, match="500 MB of free disk space, the study needs 500 MB there; nothing has moved"):
        check_room(trips, tmp_path, lambda _: enough - 1000)


def test_the_studys_folder_is_below_the_sites_storage(tmp_path):
    assert study_folder(site("a", tmp_path)) == tmp_path / "sites" / "a" / "in" / "transfer_study"
