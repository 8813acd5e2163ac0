"""The score of a model as an index keeps it: numbers, with which tokens are scored from their cosines alone.

Every score of a text and a track is a function of the cosines of the text's vectors with the track's tokens, and of a
few numbers of the model. So an index answers for its model without loading it, and from tokens of 8 bits: what is
computed here is `score_embeddings` of `modeling_collap`, by the same functions.

A text has one vector, and with an alignment one for each of its sentences: R rows, see [`ScoreFunction.rows`].

Dimensions: `A` tracks, `B` texts, `Q` sentences of a text, `R` rows of all texts, `T` tokens of a track, `W` frames,
`D` shared width.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig
from transformers.utils import cached_file

from collap.evaluation.window_embedders import GAMMAS, WINDOWED, window_frames
from modeling_collap.alignment_collap import (
    free_scores,
    monotone_scores,
    pool_frames,
    pool_sentences,
    sentence_mask,
)
from modeling_collap.scoring_collap import attention_pooled_cosines
from modeling_collap.structure_collap import token_start_seconds
from modeling_collap.weighting_collap import ScoreParameters, ScoreWeights

from .space import searched_model

SCORE_WEIGHTS = "score_parameters."  # begins the names of a model's weights that its score is of

CONFIGURED = (
    "kernel_size",
    "stride",
    "score_reduction",
    "tokens_per_segment",
    "segment_seconds",
    "token_seconds",
    "alignment",
    "alignment_frame_size",
    "sentence_temperature",
    "path_temperature",
)


@dataclass(frozen=True)
class ScoreFunction:
    """Hold the numbers of a model's score; the names are those of `CoLLAPConfig` and of `ScoreWeights`.

    Attributes:
        kernel_size, stride, alignment_frame_size: in tokens.
        tokens_per_segment, segment_seconds, token_seconds: when tokens are heard.
        blank: cosine of frames that no sentence describes; None for paths without them.
    """

    kernel_size: int
    stride: int
    gamma_kernel: float
    gamma_temporal: float
    attention_temperature: float
    score_reduction: str
    tokens_per_segment: int
    segment_seconds: float
    token_seconds: float
    alignment: str = "paper"
    alignment_frame_size: int = 1
    sentence_temperature: float = 0.1
    path_temperature: float = 0.3
    gamma_sentences: float | None = None
    gamma_path: float | None = None
    blank: float | None = None

    @classmethod
    def of(cls, config, weights: ScoreWeights, stride: int = 1) -> "ScoreFunction":
        """Take the numbers of a CoLLAP model.

        Args:
            config: `CoLLAPConfig`.
            weights: of `model.score_parameters()`.
            stride: every so many segments are embedded.
        """
        numbers = {name: None if one is None else one.item() for name, one in weights._asdict().items()}
        function = cls(**{name: getattr(config, name) for name in CONFIGURED}, **numbers)
        return replace(function, segment_seconds=stride * function.segment_seconds)

    @classmethod
    def of_windows(cls, seconds: float, stride: int = 1) -> "ScoreFunction":
        """Take the numbers by which windows of so many seconds are scored as tokens."""
        numbers = {name: value for name, value in GAMMAS.items() if name != "reduction"}
        frames = {**window_frames(seconds), "score_reduction": GAMMAS["reduction"], "tokens_per_segment": 1}
        return cls(**frames, **numbers, segment_seconds=stride * seconds, token_seconds=seconds)

    @classmethod
    def read(cls, spec: str, stride: int = 1) -> "ScoreFunction":
        """Read the numbers from the files of a model, without loading it; it is a folder, or in the cache.

        Args:
            spec: as in `searched_model`.
            stride: every so many segments are embedded.

        Raises:
            OSError, ValueError: there is no such model, or its weights are not there.
        """
        name, _ = searched_model(spec)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if config.model_type in WINDOWED:
            return cls.of_windows(WINDOWED[config.model_type].WINDOW_SECONDS, stride)
        folder, found = Path(cached_file(name, "config.json", local_files_only=True)).parent, {}
        for path in sorted(folder.glob("model*.safetensors")):
            with safe_open(path, framework="pt") as file:
                own = [key for key in file.keys() if key.startswith(SCORE_WEIGHTS)]  # noqa: SIM118 (not a dict)
                found |= {key.removeprefix(SCORE_WEIGHTS): file.get_tensor(key).float() for key in own}
        parameters = ScoreParameters(config)
        try:
            parameters.load_state_dict(found)
        except RuntimeError as error:
            problem = str(error).splitlines()[-1].strip()
            raise ValueError(f"{name}: its weights are not those of its score ({problem})") from error
        return cls.of(config, parameters(), stride)

    @classmethod
    def from_dict(cls, content: dict) -> "ScoreFunction":
        """Undo [`to_dict`].

        Raises:
            ValueError: these are not the numbers of a score.
        """
        try:
            return cls(**content)
        except TypeError as error:
            raise ValueError(f"the score of the index is not that of this version ({error}); make it anew") from error

    def to_dict(self) -> dict:
        """Return all as JSON can hold it."""
        return asdict(self)

    @property
    def has_sentences(self) -> bool:
        """Say whether the sentences of a text are scored one by one."""
        return self.alignment != "paper"

    def token_starts(self, num_tokens: int) -> torch.Tensor:
        """Return when the tokens of a track start, in seconds, (T,)."""
        return token_start_seconds(self, num_tokens)

    def rows(self, text_embeds: torch.Tensor) -> torch.Tensor:
        """Return the vectors whose cosines the score of texts (B, Q, D) needs: (R, D).

        The B vectors of the texts come first; with an alignment the B Q of sentences follow, unless every text is one
        sentence, whose vector is the text's.
        """
        pooled = pool_sentences(text_embeds)  # (B, D)
        if not self.has_sentences or text_embeds.shape[1] == 1:
            return pooled
        return torch.cat([pooled, text_embeds.flatten(0, 1)])  # (B + B Q, D)

    def split_rows(self, values: torch.Tensor, text_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return of values (..., R) of [`rows`] those of texts, (..., B), and those of sentences, (..., B Q)."""
        texts = len(text_embeds)
        return values[..., :texts], values[..., texts:] if values.shape[-1] > texts else values

    def scores(self, cosines: torch.Tensor, text_embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Score tracks with texts, as the model does.

        Args:
            cosines: (A, T, R) of tokens with [`rows`] of the texts, finite in the padding too.
            text_embeds: (B, Q, D), of which only is read where a text has fewer sentences.
            mask: (A, T) bool, real tokens first.

        Returns:
            (A, B) float32.
        """
        of_texts, of_sentences = self.split_rows(cosines, text_embeds)
        paper = (self.gamma_kernel, self.gamma_temporal, self.attention_temperature, self.score_reduction)
        score = attention_pooled_cosines(of_texts, mask, self.kernel_size, self.stride, *paper)  # (A, B)
        if not self.has_sentences:
            return score
        frames, frame_mask = pool_frames(of_sentences, mask, self.alignment_frame_size)  # (A, W, B Q), (A, W)
        frames = frames.unflatten(-1, (len(text_embeds), -1)).permute(0, 2, 3, 1)  # (A, B, Q, W)
        aligned = frames.contiguous(), sentence_mask(text_embeds), frame_mask
        score = score + self.gamma_sentences * free_scores(*aligned, self.sentence_temperature)
        if self.gamma_path is None:
            return score
        blank = None if self.blank is None else torch.tensor(self.blank)
        return score + self.gamma_path * monotone_scores(*aligned, self.path_temperature, blank)
