"""Hostile bytes: StateFormatError, and nothing else."""

import hashlib
import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from synopsis import AttentionState, states
from synopsis.states import State, StateFormatError, header
from tests.state_examples import NAMES, STATES, assert_identical


def refused(data: bytes) -> str:
    """The message with which these bytes are refused."""
    with pytest.raises(StateFormatError) as caught:
        State.deserialize(data)
    return str(caught.value)


def read_or_refuse(data: bytes) -> bool:
    """Whether bytes are read; they may only be refused with StateFormatError."""
    try:
        state = State.deserialize(data)
    except StateFormatError:
        return False
    assert isinstance(state, State)
    return True


def sign(data: bytes) -> bytes:
    """With the checksum made right, as an attacker would."""
    mark = data.find(b"checksum")
    start = data.find(b":", mark) + 3 if mark >= 0 else -1
    digits = data[start : start + 64]
    if mark < 0 or len(digits) < 64:
        return data
    blank = data[:start] + b"0" * 64 + data[start + 64 :]
    return data[:start] + hashlib.sha256(blank).hexdigest().encode() + data[start + 64 :]


def forge(state: object, tensors: dict[str, Tensor], **changes: object) -> bytes:
    """A signed file with this structure and these tensors."""
    found = {"format": 1, "count": 0, "state": state, "checksum": "0" * 64} | changes
    text = json.dumps(found, separators=(",", ":"), sort_keys=True)
    return sign(safetensors.torch.save(tensors, metadata={"synopsis": text}))


def taken_apart(name: str = "linear") -> tuple[dict, dict[str, Tensor]]:
    data = STATES[name].serialize()
    return header(data)["state"], safetensors.torch.load(data)


def test_the_attackers_tools_work():
    structure, tensors = taken_apart()
    assert_identical(State.deserialize(forge(structure, tensors)), STATES["linear"])
    data = STATES["linear"].serialize()
    assert sign(data) == data


def test_truncated_at_every_length():
    data = STATES["linear"].serialize()
    for length in range(len(data)):
        refused(data[:length])
        refused(sign(data[:length]))
    refused(data + b"\0")


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One to four bytes replaced, removed, inserted or swapped with others."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(found))
        match chance.randrange(4):
            case 0:
                found[place] = chance.randrange(256)
            case 1:
                del found[place]
            case 2:
                found.insert(place, chance.choice(b'{}[]",:0123456789eE.-ntf\\u\xff\x00'))
            case 3:
                other = chance.randrange(len(found))
                found[place], found[other] = found[other], found[place]
    return bytes(found)


def test_twenty_thousand_mutations_are_all_refused():
    chance = random.Random(0)
    datas = [state.serialize() for state in STATES.values() if state.nbytes < 5000]
    for _ in range(20_000):
        original = chance.choice(datas)
        data = mutated(original, chance)
        assert data == original or not read_or_refuse(data)


def test_signed_mutations_are_read_or_refused():
    chance = random.Random(1)
    datas = [state.serialize() for state in STATES.values() if state.nbytes < 5000]
    read = sum(read_or_refuse(sign(mutated(chance.choice(datas), chance))) for _ in range(10_000))
    assert read > 100  # a changed number is a state like any other: the checksum is no signature


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data):
    refused(data)
    refused(struct.pack("<Q", len(data)) + data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["kind", "fields", "tensor", "state", "tuple", "value", "inputs", "count"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def is_tensor(structure: object) -> bool:
    """Whether it says "here stands a tensor", which is the truth; what it adds to that is not looked at."""
    return isinstance(structure, dict) and list(structure) == ["tensor"]


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_any_structure_is_read_or_refused(structure):
    _, tensors = taken_apart()
    refused(forge(structure, tensors))
    refused(forge({"kind": "bayesian-linear", "fields": structure}, tensors))
    good, _ = taken_apart()
    for name in good["fields"]:
        data = forge({**good, "fields": {**good["fields"], name: structure}}, tensors)
        assert is_tensor(structure) or not read_or_refuse(data)


def test_lies_about_sizes_allocate_nothing():
    data = STATES["linear"].serialize()
    refused(struct.pack("<Q", 1 << 40) + data[8:])
    refused(struct.pack("<Q", (1 << 64) - 1) + data[8:])
    refused(b"")
    for shape in ([1 << 37], [1 << 20, 1 << 20], [1 << 62, 4], [-1], [2**64]):
        text = json.dumps(
            {"format": 1, "count": 0, "checksum": "0" * 64, "state": taken_apart()[0]}
        )
        lie = {"dtype": "F64", "shape": shape, "data_offsets": [0, 1 << 40]}
        head = json.dumps({"__metadata__": {"synopsis": text}, "count": lie}).encode()
        refused(sign(struct.pack("<Q", len(head)) + head + b"\0" * 64))


HOSTILE = {
    "deep lists": "[" * 500_000,
    "deep objects": '{"a":' * 140_000,
    "many lists": "[" + "[]," * 320_000 + "[]]",
    "escapes": '"' + "\\u0041" * 100_000 + '"',
    "beyond the limit": "[" + "1.5," * 3_000_000 + "1]",
}
MOST_MEBIBYTES = 64.0  # that reading a hostile header may cost
READER = """
import json, sys
from pathlib import Path
from synopsis import states
from synopsis.attention.resident_memory import measured_call

def cost_of(file):
    data = Path(file).read_bytes()
    def read():
        try:
            states.State.deserialize(data)
        except states.StateFormatError:
            return
        sys.exit(f"{file} was read")
    return measured_call(read)[0] / 2**20

states._MAX_HEADER_BYTES = int(sys.argv[1])
print(json.dumps({file: cost_of(file) for file in sys.argv[2:]}))
"""
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def costs_of_reading(names: list[str], limit: int, folder: Path) -> dict[str, float]:
    """Mebibytes at the peak of each, in a process of their own, under a limit on the length of a header."""
    files = {str(folder / name): HOSTILE[name] for name in names}
    for file, body in files.items():
        text = '{"checksum":"' + "0" * 64 + '","count":0,"format":1,"state":' + body + "}"
        head = json.dumps({"__metadata__": {"synopsis": text}}).encode()
        Path(file).write_bytes(sign(struct.pack("<Q", len(head)) + head))
    done = subprocess.run(
        [sys.executable, "-c", READER, str(limit), *files],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


@on_linux
def test_deep_and_long_headers_cost_little_memory(tmp_path):
    costs = costs_of_reading(list(HOSTILE), states._MAX_HEADER_BYTES, tmp_path)
    assert len(costs) == len(HOSTILE)
    assert max(costs.values()) < MOST_MEBIBYTES, costs


@on_linux
def test_the_bound_on_memory_would_notice(tmp_path):
    """Twelve megabytes of numbers, where no limit on the length of a header keeps them from being parsed."""
    costs = costs_of_reading(["beyond the limit"], 1 << 40, tmp_path)
    assert min(costs.values()) > 1.5 * MOST_MEBIBYTES


def test_other_kinds_and_versions_are_refused_with_what_was_found():
    structure, tensors = taken_apart()
    assert "unknown kind of state 'perceptron'" in refused(
        forge({**structure, "kind": "perceptron"}, tensors)
    )
    for version in (0, 2, 99, "1", None, 1.5):
        assert f"format {version!r}; this version reads 1" in refused(
            forge(structure, tensors, format=version)
        )
    with pytest.raises(
        StateFormatError, match="expected a state of kind 'attention', found 'bayesian-linear'"
    ):
        AttentionState.deserialize(STATES["linear"].serialize())


def test_missing_and_extra_parts_are_refused():
    structure, tensors = taken_apart()
    assert "nobody asked for" in refused(forge(structure, {**tensors, "more": torch.ones(1)}))
    for name in tensors:
        refused(forge(structure, {k: v for k, v in tensors.items() if k != name}))
        fewer = {k: v for k, v in structure["fields"].items() if k != name}
        assert "found other fields" in refused(forge({**structure, "fields": fewer}, tensors))
    more = {**structure["fields"], "more": {"value": 1}}
    assert "found other fields" in refused(forge({**structure, "fields": more}, tensors))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "anchored"])
def test_tensors_of_other_shapes_are_refused(name):
    structure, tensors = taken_apart(name)
    for path, tensor in tensors.items():
        if (name, path) == ("attention", "count"):
            continue  # its own test, below
        larger = (
            torch.cat([tensor, tensor[..., -1:]], -1) if tensor.dim() else tensor.expand(2).clone()
        )
        for wrong in (larger, tensor.unsqueeze(0)):
            if wrong is larger and (path in INDEPENDENT.get(name, ()) or not tensor.numel()):
                continue
            assert not read_or_refuse(forge(structure, {**tensors, path: wrong})), (
                path,
                wrong.shape,
            )


# Tensors whose last axis has a width of its own, so that a longer one is another whole state.
INDEPENDENT = {
    "attention": {"query", "summary.numerator"},
    "cmab": {"summary.numerator"},
    "packing": {"summary.numerator"},
    "cmanp": {"blocks.summary.numerator"},
    "cnp": {"totals"},
    "np": {"totals"},
    "context": {"x", "y"},
}


def test_a_count_of_several_keys_for_one_state_of_attention_is_refused():
    structure, tensors = taken_apart("attention")
    refused(forge(structure, {**tensors, "count": torch.tensor([3, 3])}))


@pytest.mark.parametrize("name", NAMES)
def test_tensors_of_other_dtypes_are_refused(name):
    structure, tensors = taken_apart(name)
    for path, tensor in tensors.items():
        wrong = tensor.to(torch.float32 if tensor.dtype == torch.int64 else torch.int64)
        if path != "query":
            assert not read_or_refuse(forge(structure, {**tensors, path: wrong})), path


@pytest.mark.parametrize("value", [["a"], {"a": 1}, 7, None, "x" * 10_000])
def test_a_fingerprint_that_is_no_text_is_refused(value):
    structure, tensors = taken_apart("cmab")
    structure["fields"]["fingerprint"] = {"value": value}
    if isinstance(value, str):
        assert read_or_refuse(forge(structure, tensors))
    else:
        assert not read_or_refuse(forge(structure, tensors))


@pytest.mark.parametrize(
    "metadata", [b"[]", b"{}", b'{"__metadata__":{}}', b'{"__metadata__":{"synopsis":"["}}']
)
def test_the_header_alone_is_refused_the_same_way(metadata):
    text = metadata[:-1] + b'"checksum:\\"' + b"0" * 64 + b'"' + metadata[-1:]
    data = struct.pack("<Q", len(text)) + text
    with pytest.raises(StateFormatError):
        header(sign(data))
