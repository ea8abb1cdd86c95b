"""What a prompt encoder is, and the registry that the config chooses from.

Shapes: B images, P prompts of the whole batch, D width of the prompt embedding, L tokens of the longest prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor, nn

PROMPT_ENCODER_REGISTRY = Registry("PROMPT_ENCODER")
PROMPT_ENCODER_REGISTRY.__doc__ = "Prompt encoders by name; each is built from the whole config."


class PromptEncoder(nn.Module, ABC):
    """Embeds texts, each while looking at its image. To add one: subclass, register, name it in the config."""

    embed_dim: int
    """D, width of the embedding."""
    component: str | None = None
    """The component of a weight file that fills it ("beit3"); None: it brings its own weights."""

    def prepare(self) -> None:
        """Read the files that the first prompt will need, such as a vocabulary, so that their lack shows early.

        Raises:
            FileNotFoundError, ValueError: one is missing or damaged.
        """

    @abstractmethod
    def preprocess(self, image: Tensor) -> Tensor:
        """Bring an image, uint8 [3, H, W], to this encoder's input [3, S, S]."""

    @abstractmethod
    def forward(self, images: Tensor, prompts: Sequence[str], image_index: Tensor) -> Tensor:
        """Embed P prompts.

        Args:
            images: [B, 3, S, S] from `preprocess`.
            prompts: P texts.
            image_index: [P], whose image each prompt asks about.

        Returns:
            [P, D]; a row depends on its own text and image alone.
        """


def build_prompt_encoder(cfg: CfgNode) -> PromptEncoder:
    """Build the encoder that MODEL.PROMPT_ENCODER.NAME names.

    Raises:
        KeyError: no encoder of that name is registered.
    """
    return PROMPT_ENCODER_REGISTRY.get(cfg.MODEL.PROMPT_ENCODER.NAME)(cfg)
