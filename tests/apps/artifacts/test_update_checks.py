"""Wrong updates of every kind are refused with a reason, the site and the round."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from apps.artifacts import streams
from apps.artifacts.manifests import HEADER_SPARE
from apps.artifacts.store import DTYPES, Artifact, artifact_path, save_tensors, sha256_file
from apps.artifacts.update_checks import UpdateRules, check_update
from apps.base.errors import UpdateRefused

BASE = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "n": torch.tensor([3])}
FULL = UpdateRules(method="full", max_update_norm=None)


def checked(
    store: Path, update: dict[str, torch.Tensor] | bytes, rules: UpdateRules = FULL, base: str | None = None
) -> float:
    first = save_tensors(store, BASE, "model")
    if isinstance(update, bytes):
        (store / "raw").write_bytes(update)
        artifact = Artifact(sha256=sha256_file(store / "raw"), nbytes=len(update), kind="update")
        (store / "raw").rename(artifact_path(store, artifact))
    else:
        artifact = save_tensors(store, update, "update")
    manifest = {"site": "aurora", "round": 3, "base": base or first["sha256"], "artifact": artifact}
    return check_update(manifest, first, store, rules)


def refusal(*args: object, **kwargs: object) -> str:
    with pytest.raises(UpdateRefused) as caught:
        checked(*args, **kwargs)
    error = caught.value
    assert (error.site, error.round) == ("aurora", 3)
    assert error.file.endswith(".safetensors")
    assert str(error).startswith("site aurora, round 3: update refused: ")
    return error.what


@pytest.mark.parametrize("entries", [0, 2000])
def test_a_header_that_no_update_of_this_model_has_is_not_read(entries: int, tmp_path):
    """All header, as large as its file: thousands of empty tensors, or nothing but spaces."""
    items = (f'"{n:07d}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(entries))
    text = ("{" + ",".join(items) + "}").encode().ljust(100_000)
    assert "its header has" in refusal(tmp_path, len(text).to_bytes(8, "little") + text)


def test_norm_is_that_of_the_change(tmp_path):
    update = BASE | {"w": BASE["w"] + torch.tensor([[1.0, 2, 0], [0, 0, 2]]), "b": BASE["b"] + 2}
    assert checked(tmp_path, update) == 5.0  # 1 + 4 + 4 + 4 * 4 = 25
    assert checked(tmp_path, BASE) == 0.0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), scale=st.sampled_from([1e-10, 1.0, 1e15, 1e25]))
def test_norm_of_any_size_over_several_pieces(seed, scale, tmp_path_factory):
    folder = tmp_path_factory.mktemp("norm")
    generator = torch.Generator().manual_seed(seed)
    old, new = (torch.randn(1000, generator=generator) * scale for _ in range(2))
    first, update = (save_tensors(folder, {"w": t}, "model") for t in (old, new))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "PIECE", 300)
        norm = check_update({"site": "a", "round": 1, "base": first["sha256"], "artifact": update}, first, folder, FULL)
    assert norm == pytest.approx(float((new.double() - old.double()).norm()), rel=1e-5)


def test_float64_values_beyond_float32_are_measured(tmp_path):
    first = save_tensors(tmp_path, {"w": torch.zeros(2, dtype=torch.float64)}, "model")
    update = save_tensors(tmp_path, {"w": torch.tensor([3e100, 4e100], dtype=torch.float64)}, "update")
    manifest = {"site": "a", "round": 1, "base": first["sha256"], "artifact": update}
    assert check_update(manifest, first, tmp_path, FULL) == pytest.approx(5e100)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["w", "b"])
def test_values_that_are_not_finite(value, name, tmp_path):
    bad = BASE[name].clone()
    bad.view(-1)[1:3] = value
    assert f"values that are not finite in tensor '{name}': 2" in refusal(tmp_path, BASE | {name: bad})


def test_norms_beyond_every_number_are_refused_without_a_bound(tmp_path):
    first = save_tensors(tmp_path, {"w": torch.zeros(2, dtype=torch.float64)}, "model")
    update = save_tensors(tmp_path, {"w": torch.full((2,), 1e200, dtype=torch.float64)}, "update")
    manifest = {"site": "a", "round": 1, "base": first["sha256"], "artifact": update}
    with pytest.raises(UpdateRefused, match="the norm of the change is inf"):
        check_update(manifest, first, tmp_path, FULL)


@pytest.mark.parametrize("value", [3 + (1 << 20) + 1, 2**63 - 1, -(2**63)])
def test_integer_tensors_that_move_far_are_refused(value, tmp_path):
    assert checked(tmp_path, BASE | {"n": torch.tensor([3 + 40])}) == 0.0  # a counter of steps
    assert "integer tensor 'n' changes by up to" in refusal(tmp_path, BASE | {"n": torch.tensor([value])})


def test_not_finite_in_a_later_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "PIECE", 2)
    bad = BASE["w"].clone()
    bad[1, 2] = math.nan
    assert "tensor 'w': 1" in refusal(tmp_path, BASE | {"w": bad})


def test_shapes_types_and_names(tmp_path):
    assert "'w' is F32[3, 2] instead of F32[2, 3]" in refusal(tmp_path, BASE | {"w": torch.zeros(3, 2)})
    assert "'w' is F16[2, 3] instead of F32[2, 3]" in refusal(tmp_path, BASE | {"w": torch.zeros(2, 3).half()})
    assert "missing tensors: 1, the first is 'w'" in refusal(tmp_path, {n: t for n, t in BASE.items() if n != "w"})
    assert "unknown tensors: 1, the first is 'x'" in refusal(tmp_path, BASE | {"x": torch.zeros(1)})


def test_other_base_model(tmp_path):
    assert "not trained from the base model" in refusal(tmp_path, BASE, base="0" * 64)


def test_norm_bound(tmp_path):
    update = BASE | {"w": BASE["w"] + torch.tensor([[3.0, 0, 0], [0, 4, 0]])}
    assert checked(tmp_path, update, UpdateRules(method="full", max_update_norm=5.0)) == 5.0
    told = refusal(tmp_path, update, UpdateRules(method="full", max_update_norm=4.9))
    assert "norm 5, the campaign allows 4.9" in told


def test_norm_that_is_nan_exceeds_any_bound(tmp_path):
    """A base model with NaNs gives a change that is NaN."""
    first = save_tensors(tmp_path, {"w": torch.tensor([math.nan])}, "model")
    update = save_tensors(tmp_path, {"w": torch.tensor([1.0])}, "update")
    manifest = {"site": "a", "round": 1, "base": first["sha256"], "artifact": update}
    with pytest.raises(UpdateRefused, match="the norm of the change is nan"):
        check_update(manifest, first, tmp_path, UpdateRules(method="full", max_update_norm=10.0))


def test_files_that_are_not_artifacts(tmp_path):
    whole = artifact_path(tmp_path, save_tensors(tmp_path, BASE, "update")).read_bytes()
    assert "truncated" in refusal(tmp_path, whole[:-1])
    assert "not a safetensors file" in refusal(tmp_path, whole[:20])
    assert "not a safetensors file" in refusal(tmp_path, pickle.dumps(BASE))
    assert "not a safetensors file" in refusal(tmp_path, b"")


def test_update_that_is_not_there(tmp_path):
    first = save_tensors(tmp_path, BASE, "model")
    ghost = Artifact(sha256="0" * 64, nbytes=1, kind="update")
    with pytest.raises(UpdateRefused, match="cannot read"):
        check_update({"site": "a", "round": 1, "base": first["sha256"], "artifact": ghost}, first, tmp_path, FULL)


def test_adapter_updates_hold_exactly_the_trained_tensors(tmp_path):
    model = {
        "m.lora_A.weight": torch.ones(2, 3),
        "m.lora_B.weight": torch.zeros(4, 2),
        "m.merged.weight": torch.ones(4, 3),
    }
    first = save_tensors(tmp_path, model, "adapter")

    def norm(method: str, *names: str) -> float:
        update = save_tensors(tmp_path, {n: model[n] + 1 for n in names}, "update")
        manifest = {"site": "a", "round": 1, "base": first["sha256"], "artifact": update}
        return check_update(manifest, first, tmp_path, UpdateRules(method=method, max_update_norm=None))

    assert norm("fedit", "m.lora_A.weight", "m.lora_B.weight") == pytest.approx(math.sqrt(14))
    assert norm("ffa", "m.lora_B.weight") == pytest.approx(math.sqrt(8))
    with pytest.raises(UpdateRefused, match=r"unknown tensors.*lora_A"):
        norm("ffa", "m.lora_A.weight", "m.lora_B.weight")
    with pytest.raises(UpdateRefused, match=r"unknown tensors.*merged"):
        norm("flora", *model)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
RIGHT: dict[str, Any] = {
    "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [32, 40]},
    "n": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
}
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(sorted(DTYPES)) | JSON,
        "shape": st.lists(st.integers(-1, 7) | st.sampled_from([2**31, 2**63, 10**400]), max_size=4) | JSON,
        "data_offsets": st.lists(st.sampled_from([0, 8, 32, 40, 41, 2**63, 10**400]), max_size=3) | JSON,
        "more": JSON,
    },
)
ENTRIES = st.one_of(
    *(st.just(entry) for entry in RIGHT.values()),
    st.tuples(st.sampled_from(list(RIGHT.values())), FIELDS).map(lambda pair: pair[0] | pair[1]),
    JSON,
)
CHANGED = st.dictionaries(st.sampled_from(["w", "b", "n", "__metadata__"]) | st.text(max_size=5), ENTRIES, max_size=2)
TEXTS = st.one_of(
    CHANGED.map(lambda changed: json.dumps(RIGHT | changed).encode()),
    st.sampled_from(["utf-16", "utf-32", "utf-8-sig"]).map(lambda code: json.dumps(RIGHT).encode(code)),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=60),
)


def judge(store: Path, text: bytes, data: bytes, length: int | None = None) -> None:
    """Check that a file is refused in one short line, or is what the public library reads too; with little memory."""
    raw = (len(text) if length is None else length).to_bytes(8, "little") + text + data
    tracemalloc.start()
    try:
        norm = checked(store, raw)
    except UpdateRefused as error:
        assert (error.site, error.round) == ("aurora", 3) and len(str(error)) < 600 and str(error).isprintable()
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100 * HEADER_SPARE
    path = artifact_path(store, Artifact(sha256=hashlib.sha256(raw).hexdigest(), nbytes=len(raw), kind="update"))
    found = load_file(path)
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {n: (t.dtype, t.shape) for n, t in BASE.items()}
    changes = [(found[name].double() - BASE[name].double()).flatten() for name in ("w", "b")]
    assert norm == pytest.approx(float(torch.cat(changes).norm()), rel=1e-4)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, data=st.just(bytes(40)) | st.binary(max_size=41), length=st.none() | st.integers(0, 2**64 - 1))
def test_any_header_is_refused_in_one_line_or_right(text: bytes, data: bytes, length: int | None, tmp_path_factory):
    judge(tmp_path_factory.mktemp("any"), text, data, length)


def of_w(shape: str, end: str, dtype: str = "F32") -> str:
    return f'{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}'


EMPTY = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
LONG, NINES = "x" * 60_000, "9" * 4300  # digits that Python still parses, but does not print with an offset added
ODD_HEADERS = {
    "a size of thousands of digits": of_w(f"[{NINES}]", NINES, "U8"),
    "a product of thousands of digits": of_w(f"[{','.join([NINES] * 12)}]", "24"),
    "a long type": of_w("[2,3]", "24", LONG),
    "a long name": json.dumps(RIGHT | {LONG: EMPTY}),
    "a name with a line of its own": json.dumps(RIGHT | {"x\n\u001b[2J\u2028": EMPTY}),
    "a long word in a place of its own": json.dumps({"w": RIGHT["w"] | {"shape": [LONG]}}),
    "sizes as text": of_w('""', "4"),
    "sizes as an object": of_w("{}", "4"),
    "many sizes": of_w(f"[{','.join(['1'] * 30_000)}]", "4"),
    "a name twice": of_w("[2,3]", "24")[:-1] + "," + json.dumps(RIGHT)[1:],
    "metadata that are no texts": json.dumps(RIGHT | {"__metadata__": {"a": 1}}),
    "half a character": json.dumps(RIGHT | {"\ud800": EMPTY}),
    "many names": json.dumps({f"{n:x}": EMPTY for n in range(900)}),
}


@pytest.mark.parametrize("text", ODD_HEADERS.values(), ids=ODD_HEADERS)
def test_a_header_made_to_trouble_who_reads_it_is_refused(text: str, tmp_path):
    judge(tmp_path, text.encode(), bytes(40))
    with pytest.raises(UpdateRefused):
        checked(tmp_path, len(text.encode()).to_bytes(8, "little") + text.encode() + bytes(40))
