"""CoLLAP's processor: a tokenizer and the audio feature extractor behind one call."""

from collections.abc import Iterable

import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import logging

from .feature_extraction_collap import CoLLAPFeatureExtractor, check_return_tensors

logger = logging.get_logger(__name__)

TEXT_KWARGS = ("max_length", "padding")
NO_LIMIT = 2**31  # tokenizers without a limit say 1e30, which their own truncation and padding cannot hold


def check_texts(text: str | list[str]) -> list[str]:
    """One text or several as a list.

    Raises:
        ValueError: names the first that is empty or not a string.
    """
    if isinstance(text, (bytes, dict)) or not isinstance(text, Iterable):
        raise ValueError(f"text is a {type(text).__name__}; expected a string or a list of strings")
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise ValueError("found an empty list of texts; expected at least one")
    for i, one in enumerate(texts):
        if not isinstance(one, str):
            raise ValueError(f"text[{i}] is a {type(one).__name__}; expected a string")
        if not one.strip():
            raise ValueError(f"text[{i}] is empty; expected a description")
    return texts


class CoLLAPProcessor(ProcessorMixin):
    r"""Joins a tokenizer and a [`CoLLAPFeatureExtractor`].

    A tokenizer without a pad token, such as GPT-2's, gets its end-of-text token as one.

    Args:
        feature_extractor: a [`CoLLAPFeatureExtractor`].
        tokenizer: of the text tower.
        max_text_tokens: tokens that the text tower can read; the tokenizer's `model_max_length` if None. Longer texts
            are cut, which is said once, with both lengths.

    Raises:
        ValueError: if the tokenizer has neither a pad token nor an end-of-text token.
    """

    _said_texts_are_cut = False  # of the class: one warning in a process, not one for every length

    def __init__(self, feature_extractor, tokenizer, max_text_tokens=None):
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise ValueError("the tokenizer has neither pad_token nor eos_token; set one of them to pad batches")
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        tokenizer.model_input_names = ["input_ids", "attention_mask"]  # BERT's has token types, too
        super().__init__(feature_extractor, tokenizer)
        self.max_text_tokens = max_text_tokens

    @classmethod
    def from_model_config(cls, config, tokenizer) -> "CoLLAPProcessor":
        """The processor that fits a `CoLLAPConfig`; `tokenizer` is that of its text tower."""
        limits = [limit for limit in (config.text_positions, tokenizer.model_max_length) if limit]
        return cls(CoLLAPFeatureExtractor.from_model_config(config), tokenizer, max_text_tokens=min(limits))

    def __call__(
        self,
        text=None,
        audio=None,
        sampling_rate=None,
        device="cpu",
        text_kwargs=None,
        audio_kwargs=None,
        return_tensors="pt",
    ) -> BatchFeature:
        """
        Args:
            text: one text or a list of them, or None.
            audio, sampling_rate: as in [`CoLLAPFeatureExtractor`], or None.
            device: where audio features are computed and all tensors are returned.
            text_kwargs: `max_length` (at most `max_text_tokens`) and `padding` of the tokenizer.
            audio_kwargs: more arguments of the feature extractor, e.g. `{"sampling_rate": 48000}`.
            return_tensors: only `"pt"`.

        Returns:
            input_ids, attention_mask (B, L) and the outputs of the feature extractor.

        Raises:
            ValueError: if both text and audio are missing, for an empty text, for a `max_length` that the text tower
                cannot read, or as the feature extractor.
            TypeError: for an unknown argument.
        """
        check_return_tensors(return_tensors)
        if text is None and audio is None:
            raise ValueError("found neither text nor audio; expected at least one of them")
        inputs = {}
        if text is not None:
            inputs.update(self._tokenize(text, text_kwargs or {}))
        if audio is not None:
            rate = {} if sampling_rate is None else {"sampling_rate": sampling_rate}
            inputs.update(self.feature_extractor(audio, **rate, **{"device": device, **(audio_kwargs or {})}))
        return BatchFeature({name: tensor.to(device) for name, tensor in inputs.items()})

    def _tokenize(self, text: str | list[str], text_kwargs: dict) -> dict[str, torch.Tensor]:
        texts = check_texts(text)
        limit = self._text_limit(text_kwargs)
        encoded = self.tokenizer(texts, return_attention_mask=True, verbose=False)
        longest = max(len(ids) for ids in encoded["input_ids"])
        limit = longest if limit >= NO_LIMIT else limit
        if longest > limit:
            self._say_texts_are_cut(longest, limit)
            encoded = self.tokenizer(texts, return_attention_mask=True, max_length=limit, truncation=True)
        padding = text_kwargs.get("padding", True)
        length = {"max_length": limit} if padding == "max_length" else {}
        return self.tokenizer.pad(encoded, padding=padding, **length, return_tensors="pt")

    def _say_texts_are_cut(self, longest: int, limit: int):
        if not CoLLAPProcessor._said_texts_are_cut:
            CoLLAPProcessor._said_texts_are_cut = True
            logger.warning(
                f"a text of {longest} tokens is cut to the {limit} that the text tower reads (said once; the end of "
                "every longer text is ignored)"
            )

    def _text_limit(self, text_kwargs: dict) -> int:
        """Tokens after which texts are cut."""
        unknown = sorted(set(text_kwargs) - set(TEXT_KWARGS))
        if unknown:
            raise TypeError(f"text_kwargs has {', '.join(unknown)}; expected only {', '.join(TEXT_KWARGS)}")
        tower = self.max_text_tokens or self.tokenizer.model_max_length
        limit = text_kwargs.get("max_length")
        if limit is None:
            return tower
        if not 0 < limit <= tower:
            raise ValueError(
                f"max_length must be from 1 to the {tower} tokens that the text tower reads, found {limit}"
            )
        return limit

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", *self.feature_extractor.model_input_names]
