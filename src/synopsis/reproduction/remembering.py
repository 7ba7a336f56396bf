"""Results that are kept beside a run, so that a table that was killed does not compute them again."""

import json
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from synopsis.states import write_atomic


def remembered(
    folder: Path,
    what: str,
    settings: Mapping[str, Any],
    compute: Callable[[], Mapping[str, Any]],
) -> dict[str, Any]:
    """A result that is computed once and then read: a table that was killed continues where it was.

    Args:
        folder: of the run; made if it does not exist.
        what: first part of the file's name, such as ``"evaluation"``.
        settings: everything the result depends on, the process's fingerprint among it.
        compute: gives the result, which JSON can hold.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     remembered(Path(folder), "score", {"batches": 2}, lambda: {"value": 1.5})
        {'value': 1.5}
    """
    text = json.dumps(settings, sort_keys=True)
    path = folder / f"{what}-{blake2b(text.encode(), digest_size=6).hexdigest()}.json"
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["result"]
        return kept
    except (OSError, ValueError, KeyError):
        result = json.dumps({"settings": settings, "result": compute()}, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, result.encode())
    found: dict[str, Any] = json.loads(result)["result"]
    return found
