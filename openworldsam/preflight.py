"""Files that a model cannot do without, looked for before torch is imported and the model is built."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openworldsam.config_files import TOKENIZER, config_contents, find_config, find_weights, flat, looked_for
from openworldsam.download import names_of

ENCODER = "MODEL.PROMPT_ENCODER"
ENCODERS = ("MODEL.SAM2.WEIGHTS", f"{ENCODER}.WEIGHTS")


def missing_weights(config: str | Path, opts: Sequence[str] = (), *, training: bool = False) -> dict[str, str]:
    """Find the weight files of a config that exist nowhere: the path by config key.

    Where MODEL.WEIGHTS exists, the files of the encoders are not asked for: it may hold them.

    Args:
        training: it starts from SOLVER.INIT_WEIGHTS, if that is set, and a feature cache stands for the prompt encoder.

    Raises:
        FileNotFoundError, ValueError: there is no such config, or it cannot be read.
    """
    values = stated_values(config, opts)
    values.setdefault(f"{ENCODER}.TOKENIZER", TOKENIZER)
    if training and (start := values.get("SOLVER.INIT_WEIGHTS")):
        values["MODEL.WEIGHTS"] = "" if start == "fresh" else start
    if training and values.get("DATASETS.FEATURE_CACHE"):
        values |= dict.fromkeys((f"{ENCODER}.WEIGHTS", f"{ENCODER}.TOKENIZER"), "")
    named = {key: str(values.get(key) or "") for key in ("MODEL.WEIGHTS", *ENCODERS, f"{ENCODER}.TOKENIZER")}
    missing = {key: path for key, path in named.items() if path and not Path(find_weights(path)).exists()}
    if named["MODEL.WEIGHTS"] and "MODEL.WEIGHTS" not in missing:
        missing = {key: path for key, path in missing.items() if key not in ENCODERS}
    return missing


def stated_values(config: str | Path, opts: Sequence[str] = ()) -> dict[str, Any]:
    """The values that a config's files and the KEY VALUE pairs state, by dotted key; without defaults."""
    values: dict[str, Any] = {}
    for _, content in config_contents(find_config(config)):
        values |= flat(content)
    return values | dict(zip(opts[::2], opts[1::2], strict=False))


def check_weights(config: str | Path, opts: Sequence[str] = (), *, training: bool = False) -> None:
    """Name all weights of a config that are missing, and how to get them; arguments as in `missing_weights`.

    Raises:
        FileNotFoundError: weights are missing.
        KeyError, ValueError: weights are missing, and the config is not right.
    """
    if not (missing := missing_weights(config, opts, training=training)):
        return
    from openworldsam.config import load_config

    load_config(config, opts)  # a misspelt key may be why, and is then the error
    files = list(dict.fromkeys(missing.values()))
    them = "it" if len(files) == 1 else "them"
    fetch = f"; `openworldsam download {' '.join(names)}` fetches {them}" if (names := names_of(files)) else ""
    places = looked_for(next((file for file in files if not Path(file).is_absolute()), files[0]))
    tokenizer = missing.get(f"{ENCODER}.TOKENIZER")
    kinds = {tokenizer: "tokenizer file" if Path(str(tokenizer)).suffix else "folder"}
    named = " and ".join(f"{kinds.get(file, 'weight file')} {file}" for file in files)
    raise FileNotFoundError(f"{named} not found{places}{fetch}")
