import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synopsis.training.toml import toml_table

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = TEXT | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)


@given(TEXT, st.dictionaries(TEXT, VALUES, max_size=4))
def test_what_is_written_reads_back_equal(name, values):
    read = tomllib.loads(toml_table(name, values))
    assert read == {name: values}
    assert repr(read) == repr({name: values})  # also the types: 1, 1.0 and True are equal


@pytest.mark.parametrize("value", [None, object(), {1, 2}])
def test_what_toml_cannot_say_is_refused(value):
    with pytest.raises(TypeError, match="cannot be written as TOML"):
        toml_table("a", {"b": [value]})
