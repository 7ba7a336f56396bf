"""Writing the plain TOML that an experiment is made of; reading is the standard library's."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def toml_table(name: str, values: Mapping[str, Any]) -> str:
    """One table with its header.

    Args:
        name: the header, without brackets.
        values: booleans, numbers, strings, and sequences and mappings of those; no None,
            which TOML does not have.

    Returns:
        Lines of TOML 1.0, each ended, that ``tomllib`` reads back as equal values.

    Raises:
        TypeError: for a value of any other type.

    Example:
        >>> print(toml_table("task", {"noise": 0.02}), end="")
        [task]
        noise = 0.02
    """
    lines = [f"{_key(key)} = {_value(value)}\n" for key, value in values.items()]
    return f"[{_key(name)}]\n" + "".join(lines)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped and JSON leaves as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _string(value)
        case Mapping():
            return (
                "{"
                + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items())
                + "}"
            )
        case Sequence():
            return "[" + ", ".join(map(_value, value)) + "]"
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as TOML")
