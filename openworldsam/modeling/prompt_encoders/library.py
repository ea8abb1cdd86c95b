"""Prompt encoders of maintained libraries, built from a folder as their authors publish it; nothing is fetched.

    config.json                 sizes of the model
    preprocessor_config.json    size, crop, interpolation, mean and standard deviation of its images; newer
                                folders have them in processor_config.json
    tokenizer.json, ...         the tokenizer
    model.safetensors, ...      the weights, in one file, or in shards with an index

MODEL.PROMPT_ENCODER.TOKENIZER is this folder, and MODEL.PROMPT_ENCODER.WEIGHTS the same one, or a file of weights. So
the sizes are known wherever the tokenizer is: a saved model has a copy of all but the weights. MODEL.PROMPT_ENCODER.
EMBED_DIM alone is in the config; a training from a cache needs nothing else.

A library is imported when an encoder of it is built, not before.

Shapes: B images, P prompts of the whole batch, N prompts of a chunk, L text tokens, D width of the prompt embedding.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from openworldsam.modeling.components import Component
from openworldsam.modeling.prompt_encoders.base import PromptEncoder, check_prompts, encode_in_chunks
from openworldsam.utils.device import upload
from openworldsam.utils.files import read_json, regular_file
from openworldsam.utils.text import brief, shortened

logger = logging.getLogger(__name__)


def import_library(name: str) -> Any:
    """Import an optional package.

    Raises:
        ValueError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        install = "pip install 'openworldsam[encoders]', in the repository pip install -e '.[encoders]'"
        reason = shortened(" ".join(str(error).split()), 400)
        raise ValueError(f"this prompt encoder needs the package {name} ({reason}): {install}") from error


class _Undrawn(TorchFunctionMode):
    """Zeros in place of the random start of parameters that a weight file will fill, in this thread alone.

    `no_init_weights` of transformers changes torch for all threads. `trunc_normal_` draws until all values are within
    its bounds, as zeros are.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_"):
            return (args[0] if args else kwargs["tensor"]).data.zero_()
        func = torch.zeros if func is torch.randn else func
        return func(*args, **(kwargs or {}))


def joint_mask(images: Tensor, padding: Tensor | None) -> Tensor | None:
    """Mark the tokens of image [N, T, D] and text, in this order, that all attend to: bool [N, 1, 1, T + L].

    The library checks a mask of four axes no further, which would wait for the device. None if there is no padding.
    """
    return None if padding is None else ~F.pad(padding, (images.shape[1], 0))[:, None, None]


def last_tokens(tokens: Tensor, padding: Tensor | None) -> Tensor:
    """Select the last token of each text, [N, D], of sequences [N, T + L, D] that end with `padding`."""
    if padding is None:
        return tokens[:, -1]
    return tokens[torch.arange(len(tokens), device=tokens.device), -1 - padding.sum(dim=1)]


class LibraryEncoder(PromptEncoder):
    """An encoder whose images are encoded once, and its prompts in chunks, by modules of a library.

    To add one: subclass; declare `component` and the names of the library's classes; write `build`, `table`,
    `encode_texts` and, if it reads the image, `encode_images`.
    """

    component: ClassVar[Component]
    tokenizer_name = "encoder"
    settings = ("MODEL.PROMPT_ENCODER.MAX_TOKENS",)
    library: ClassVar[str] = "transformers"
    config_file: ClassVar[str] = "config.json"
    config_class: ClassVar[str]
    """Name of the library's class for config.json."""
    tokenizer_class: ClassVar[str]
    """Name of its class for the tokenizer."""
    image_processor: ClassVar[str] = ""
    """Name of its class for preprocessor_config.json; empty for an encoder that does not read the image."""
    padded: ClassVar[bool] = False
    """Whether the model wants every text padded to `max_tokens`, and reads the padding as part of it."""
    template: ClassVar[str] = "{}"
    """The text that the model reads of a prompt, as its training words the task."""
    adds_special_tokens: ClassVar[bool] = True
    """Whether the tokenizer adds special tokens to a text; otherwise they are in the template."""
    max_tokens: int
    """Positions of the text; `build` sets it."""
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        keys = cfg.MODEL.PROMPT_ENCODER
        if keys.CHUNK < 1:
            raise ValueError(f"MODEL.PROMPT_ENCODER.CHUNK is at least 1, got {keys.CHUNK}")
        if not keys.USE_IMAGE:
            raise ValueError(
                "MODEL.PROMPT_ENCODER.USE_IMAGE False is for BEiT-3: choose an encoder that reads the text"
            )
        self.folder, self.chunk = Path(keys.TOKENIZER), keys.CHUNK
        library, path = import_library(self.library), self.folder / self.config_file
        content = read_json(path, self._hint)
        if self.image_processor:
            self._read_image_processor(library)
        undrawn = _Undrawn() if keys.WEIGHTS or cfg.MODEL.WEIGHTS else contextlib.nullcontext()
        with self._read(path), undrawn:
            self.build(library, self.read_config(library, content))
        self.max_tokens = min(self.max_tokens, keys.MAX_TOKENS)

    def read_config(self, library: Any, content: dict[str, Any]) -> Any:
        """Make an instance of `config_class` from the content of its file.

        Raises:
            ValueError: the file describes another kind of model.
        """
        config_class = getattr(library, self.config_class)
        if (found := content.get("model_type")) != config_class.model_type:
            raise ValueError(f"it describes a {brief(found)}, not a {config_class.model_type!r}; {self._hint}")
        return config_class.from_dict(content)

    @abstractmethod
    def build(self, library: Any, config: Any) -> None:
        """Make the library's modules, named as in the public files, and set `embed_dim` and `max_tokens`.

        config: from `read_config`.
        """

    @property
    @abstractmethod
    def table(self) -> nn.Embedding:
        """The embedding table of the text's tokens."""

    @abstractmethod
    def encode_texts(self, images: Tensor | None, ids: Tensor, padding: Tensor | None) -> Tensor:
        """Embed N prompts of a chunk; see `encode_in_chunks`. Returns [N, D]."""

    @property
    def _hint(self) -> str:
        layout, hint = self.component.layout, self.component.hint
        return f"MODEL.PROMPT_ENCODER.TOKENIZER is the folder of a {layout} model, with all its files {hint}"

    @contextlib.contextmanager
    def _read(self, path: Path) -> Iterator[None]:
        """Report in one line whatever a library raises while it reads a file."""
        try:
            yield
        except Exception as error:
            reason = shortened(" ".join(str(error).split()) or type(error).__name__, 400)
            raise ValueError(f"{path} is damaged, or not of {self.component.layout} ({reason})") from error

    def _read_image_processor(self, library: Any) -> None:
        path = self.folder / "preprocessor_config.json"
        if not path.exists() and (newer := self.folder / "processor_config.json").exists():
            path = newer
        regular_file(path, self._hint)
        with self._read(path):
            processor = getattr(library, self.image_processor).from_pretrained(self.folder, local_files_only=True)
            size, crop = processor.size, processor.crop_size
            self.image_size = [size.height, size.width] if size.height else [size.shortest_edge]
            self.image_crop = [crop.height, crop.width] if processor.do_center_crop else None
            self.interpolation = InterpolationMode(Image.Resampling(processor.resample).name.lower())
            for name, values in (("image_mean", processor.image_mean), ("image_std", processor.image_std)):
                numbers = torch.tensor(values)[:, None, None] / processor.rescale_factor
                self.register_buffer(name, numbers, persistent=False)

    def resized_size(self, height: int, width: int) -> list[int]:
        """The size of a resized image, [height, width] or [shorter side], given its own."""
        return self.image_size

    def preprocess(self, image: Tensor) -> Tensor:
        """Resize, crop and normalise as the library's image processor does; without image, a placeholder [3, 1, 1]."""
        if not self.image_processor:
            return torch.zeros(3, 1, 1, device=image.device)
        image = transforms.resize(image, self.resized_size(*image.shape[1:]), self.interpolation, antialias=True)
        if self.image_crop:
            # as the library rounds, which is not as torchvision's center_crop does; zeros beyond a smaller image
            sides = zip(image.shape[1:], self.image_crop, strict=True)
            top, left = (int((side - wanted) / 2) for side, wanted in sides)
            image = transforms.crop(image, top, left, *self.image_crop)
        return (image.float() - self.image_mean) / self.image_std

    @cached_property
    def tokenizer(self) -> Any:
        """The library's tokenizer, read from the folder at first use."""
        known = getattr(import_library("transformers"), self.tokenizer_class)
        names = {"tokenizer_file": "tokenizer.json", **known.vocab_files_names}
        whole, *others = (self.folder / name for name in names.values())
        if not whole.is_file():  # the library would make an empty vocabulary
            for path in others or [whole]:
                regular_file(path, f"nor is {whole.name}. {self._hint}")
        with self._read(self.folder):
            return known.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def special(self) -> set[int]:
        """Ids of tokens that are not words: the tokenizer's special and added ones, such as places in an image."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).items()
        spelt = {number for number, token in added if token.content.strip("\u2581 \n\t")}  # Gemma has runs of spaces
        return spelt.union(self.tokenizer.all_special_ids)

    @cached_property
    def bare(self) -> list[int]:
        """Ids of the template, the tokenizer's start and end included, without a prompt.

        Raises:
            ValueError: MAX_TOKENS leaves no room for a prompt.
        """
        (ids,) = self.token_ids([self.template.format("")])
        if self.max_tokens <= len(ids):
            words = f"the {len(ids)} tokens around a prompt of {type(self).__name__}"
            raise ValueError(f"MODEL.PROMPT_ENCODER.MAX_TOKENS is more than {words}, got {self.max_tokens}")
        return ids

    def prepare(self) -> None:
        self.bare  # noqa: B018

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode P prompts, each in its template, as ids [P, L], padded on the right, and their lengths [P].

        Raises:
            ValueError: a prompt is empty, is not a text, or spells a special token; MAX_TOKENS leaves no room for one;
                an id is beyond the embedding table.
        """
        check_prompts(prompts)
        bare, most = self.bare, self.max_tokens
        ids = self.token_ids([self.template.format(prompt) for prompt in prompts])
        unknown, *ends = (getattr(self.tokenizer, f"{role}_token_id", None) for role in ("unk", "bos", "eos", "pad"))
        control = self.special - ({unknown} - {*ends})  # a word may be unknown; CLIP's end token has both roles
        wanted = sum(token in control for token in bare)
        for index, (prompt, found) in enumerate(zip(prompts, ids, strict=True)):
            words = (Counter(found) - Counter(bare)).keys() - self.special
            if not any(self.tokenizer.decode([word]).strip() for word in words):
                raise ValueError(f"prompt {index} is empty, or has no word that the tokenizer knows: {prompt!r:.80}")
            if sum(token in control for token in found) != wanted:
                raise ValueError(f"prompt {index} holds what the tokenizer reads as a special token: {prompt!r:.80}")
            if len(found) > most:
                own = (len(found) - len(bare), most - len(bare))
                logger.warning("prompt %.40r... has %d tokens; only the first %d count", prompt, *own)
        pad_id = getattr(self.tokenizer, "pad_token_id", None) or 0
        ids = [self._fit(found, pad_id) for found in ids]
        if (largest := max(map(max, ids))) >= self.table.num_embeddings:
            raise ValueError(
                f"token id {largest} is beyond the {self.table.num_embeddings} entries of the text embedding: "
                f"the tokenizer in {self.folder} and its config.json do not belong together"
            )
        padded = pad_sequence(list(map(torch.tensor, ids)), batch_first=True, padding_value=pad_id)
        return padded, torch.tensor(list(map(len, ids)))

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """Encode texts whole."""
        options = {"add_special_tokens": self.adds_special_tokens, "verbose": False}
        ids: list[list[int]] = self.tokenizer(texts, **options)["input_ids"]
        return ids

    def _fit(self, ids: list[int], pad_id: int) -> list[int]:
        """Cut a prompt in its template to `max_tokens`, but not the template's end; pad it if the model wants that."""
        if (over := len(ids) - self.max_tokens) > 0:
            same = (n for n in range(len(self.bare), -1, -1) if ids[len(ids) - n :] == self.bare[len(self.bare) - n :])
            end = len(ids) - next(same)
            ids = ids[: end - over] + ids[end:]
        return ids + [pad_id] * (self.max_tokens - len(ids)) if self.padded else ids

    def forward(self, images: Tensor, prompts: Sequence[str], image_index: Tensor) -> Tensor:
        ids, lengths = self.tokenize(prompts)
        return encode_in_chunks(self.encode_texts, images, ids, lengths, image_index, self.chunk, images.device)

    def word_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """The mean of the words' entries in the embedding table, with zeros up to the width D."""
        device, width = self.table.weight.device, self.table.embedding_dim
        if width > self.embed_dim:
            raise ValueError(f"word embeddings have width {width}, more than the {self.embed_dim} of a prompt's")
        words = [
            torch.tensor([i for i in ids[: self.max_tokens] if i not in self.special], dtype=torch.long)
            for ids in self.token_ids(list(prompts))
        ]
        counts = torch.tensor(list(map(len, words)))[:, None]
        weights = (torch.arange(int(counts.max())) < counts) / counts.clamp(min=1)
        table = F.embedding(upload(pad_sequence(words, batch_first=True), device), self.table.weight)  # not scaled
        return F.pad((table * upload(weights, device)[..., None]).sum(dim=1), (0, self.embed_dim - width))
