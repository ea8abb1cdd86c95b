"""BEiT-3's tokenizer: sentencepiece with the id layout of XLM-RoBERTa.

Ids: `<s>` 0, padding 1, `</s>` 2, unknown 3, every other piece its sentencepiece id + 1, and "[semantic]" at the
start of a prompt 64002: a token that EVF-SAM added and trained for names of classes.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor

from openworldsam.config_files import looked_for
from openworldsam.modeling.prompt_encoders.base import check_prompts
from openworldsam.utils.files import save_atomically

logger = logging.getLogger(__name__)

BOS_ID, PAD_ID, EOS_ID, UNKNOWN_ID = 0, 1, 2, 3
SEMANTIC, SEMANTIC_ID = "[semantic]", 64002


class BEiT3Tokenizer:
    """Turns texts into padded token ids.

    Args:
        model_file: the sentencepiece file, `beit3.spm` for the public weights.
        max_tokens: most tokens of a prompt, both end tokens included; a longer one is cut before the end token.
        vocab_size: ids must be below this; where it leaves no place for "[semantic]", that is text as any other.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a sentencepiece model.
    """

    def __init__(self, model_file: str | Path, max_tokens: int = 512, vocab_size: int = 64010) -> None:
        if not Path(model_file).is_file():
            raise FileNotFoundError(
                f"tokenizer file {model_file} not found{looked_for(model_file)}; for the public weights "
                "`openworldsam download beit3_tokenizer` fetches beit3.spm; MODEL.PROMPT_ENCODER.TOKENIZER is its path"
            )
        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{model_file} is not a sentencepiece model: {error}") from error
        self.max_tokens = max_tokens
        self.knows_semantic = vocab_size > SEMANTIC_ID

    def encode(self, prompt: str) -> list[int]:
        """Encode one text as `<s> pieces </s>`."""
        ids, text = [], prompt.lstrip()
        if self.knows_semantic and text.startswith(SEMANTIC):
            ids, prompt = [SEMANTIC_ID], text.removeprefix(SEMANTIC)
        unknown = self.pieces.unk_id()
        ids += [UNKNOWN_ID if piece == unknown else piece + 1 for piece in self.pieces.encode(prompt)]
        if len(ids) > self.max_tokens - 2:
            logger.warning(
                "prompt %.40r... has %d tokens; only the first %d count", prompt, len(ids), self.max_tokens - 2
            )
        return [BOS_ID, *ids[: self.max_tokens - 2], EOS_ID]

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Encode P texts as ids [P, L], L tokens of the longest, padded with 1 on the right.

        Raises:
            ValueError: a prompt is empty or not a text.
        """
        check_prompts(prompts)
        ids = [torch.tensor(self.encode(prompt)) for prompt in prompts]
        for index, prompt in enumerate(prompts):
            if len(ids[index]) == 2:  # sentencepiece drops control and zero-width characters
                raise ValueError(f"prompt {index} is empty: {prompt!r}")
        return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD_ID)


def train_tokenizer(path: Path, texts: Iterable[str], most_pieces: int, **options: Any) -> None:
    """Train a sentencepiece model on texts and save it; further options are those of sentencepiece's trainer."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=buffer,
        vocab_size=most_pieces,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    save_atomically(path, lambda partial: partial.write_bytes(buffer.getvalue()))
