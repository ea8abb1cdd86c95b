"""Files that a command cannot do without, looked for before the seconds that importing torch takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openworldsam.config_files import config_contents, find_config, find_weights, looked_for
from openworldsam.download import names_of

TOKENIZER = "MODEL.PROMPT_ENCODER.TOKENIZER"
ENCODERS = ("MODEL.SAM2.WEIGHTS", "MODEL.PROMPT_ENCODER.WEIGHTS")


def missing_weights(config: str | Path, opts: Sequence[str] = ()) -> dict[str, str]:
    """Find the weight files of a config that exist nowhere: the path by config key.

    Where MODEL.WEIGHTS exists, the files of the encoders are not asked for: it may hold them.

    Raises:
        FileNotFoundError, ValueError: there is no such config, or it cannot be read.
    """
    values = stated_values(config, opts)
    values.setdefault(TOKENIZER, "weights/beit3.spm")
    named = {key: str(values.get(key) or "") for key in ("MODEL.WEIGHTS", *ENCODERS, TOKENIZER)}
    missing = {key: path for key, path in named.items() if path and not Path(find_weights(path)).exists()}
    if named["MODEL.WEIGHTS"] and "MODEL.WEIGHTS" not in missing:
        missing = {key: path for key, path in missing.items() if key not in ENCODERS}
    return missing


def stated_values(config: str | Path, opts: Sequence[str] = ()) -> dict[str, Any]:
    """The values that a config's files and the KEY VALUE pairs state, by dotted key; without defaults."""
    values: dict[str, Any] = {}
    for _, content in config_contents(find_config(config)):
        values |= _flat(content)
    return values | dict(zip(opts[::2], opts[1::2], strict=False))


def _flat(section: dict[str, Any], before: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in section.items():
        values |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return values


def check_weights(config: str | Path, opts: Sequence[str] = ()) -> None:
    """Raise FileNotFoundError if weights of a config are missing; names all of them, and how to get them."""
    if not (missing := missing_weights(config, opts)):
        return
    files = list(dict.fromkeys(missing.values()))
    fetch = f"; `openworldsam download {' '.join(names)}` fetches them" if (names := names_of(files)) else ""
    places = looked_for(next((file for file in files if not Path(file).is_absolute()), files[0]))
    raise FileNotFoundError(f"{' and '.join(files)} not found{places}{fetch}")
