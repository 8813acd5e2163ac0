"""Settings that are checked whenever they are set: types by huggingface_hub's strict dataclasses, as in transformers'
own configurations, ranges by the fields below. A wrong value is a ValueError of one line that names the setting."""

import dataclasses
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import torch
from huggingface_hub.dataclasses import strict, validated_field
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

MAX_LAYERS = 256  # the deepest models have 130; a mistyped number must not build until memory is full
MAX_WIDTH = 2**16
TYPE_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a text", dict: "a dictionary"}


def check_range(value: float | None, minimum: float, maximum: float, positive: bool = False) -> None:
    """Refuse a number outside of a range, and NaN; None is let through.

    Args:
        positive: refuse `minimum` itself, too.

    Raises:
        ValueError: says what was expected and found, but not of which setting.
    """
    if value is None or (minimum <= value <= maximum and not (positive and value == minimum)):
        return
    if value > maximum:
        raise ValueError(f"must be at most {maximum}, found {value}")
    least = "must be positive" if positive else f"must be at least {minimum}" if minimum else "must not be negative"
    raise ValueError(f"{least}, found {value}")


def ranged(default: Any, minimum: float, maximum: float) -> Any:
    """Declare a field whose value is from `minimum` to `maximum`."""
    return validated_field(lambda value: check_range(value, minimum, maximum), default=default)


def positive(default: Any, maximum: float) -> Any:
    """Declare a field whose value is above 0, and at most `maximum`."""
    return validated_field(lambda value: check_range(value, 0, maximum, positive=True), default=default)


def check_dtype(dtype: Any, prefix: str = "") -> None:
    """Refuse what is no floating-point format of torch, or the name of one; None is let through."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"{prefix}dtype must be a number format such as float32, found {reprlib.repr(dtype)}")


def check_common(config: PreTrainedConfig, prefix: str = "") -> None:
    """Refuse wrong values of the settings that all configurations have, and whose types transformers does not check.

    Raises:
        ValueError: names the setting, after `prefix`.
    """
    for name in ("output_hidden_states", "return_dict", "is_encoder_decoder"):
        if not isinstance(getattr(config, name), bool | NoneType):
            raise ValueError(f"{prefix}{name} must be true or false, found {reprlib.repr(getattr(config, name))}")
    check_dtype(config.dtype, prefix)
    if getattr(config, "transformers_weights", None):
        raise ValueError(
            f"{prefix}transformers_weights is not read: weights are in model.safetensors, or in its shards"
        )
    if type(config.chunk_size_feed_forward) is not int or config.chunk_size_feed_forward < 0:
        found = reprlib.repr(config.chunk_size_feed_forward)
        raise ValueError(f"{prefix}chunk_size_feed_forward must be an integer from 0 on, found {found}")
    for name in ("hidden_act", "activation_function"):
        if isinstance(getattr(config, name, None), str) and getattr(config, name) not in ACT2FN:
            raise ValueError(f"{prefix}{name} must be an activation such as gelu, found {getattr(config, name)!r}")


@contextmanager
def naming(prefix: str) -> Iterator[None]:
    """Turn what a configuration raises, of whatever class, into a ValueError of one line that begins with `prefix`."""
    try:
        yield
    except Exception as error:
        reason = error.__cause__ if isinstance(error, StrictDataclassError) else error
        raise ValueError(prefix + " ".join(str(reason).split())[:400]) from error


def checked(cls: type) -> type:
    """Make a configuration class strict, as huggingface_hub's `strict` does, with errors of one line."""
    cls = strict(cls)
    strict_init, strict_setattr, strict_validate = cls.__init__, cls.__setattr__, cls.validate

    @wraps(strict_setattr)
    def __setattr__(self, name: str, value: Any) -> None:
        try:
            strict_setattr(self, name, value)
        except StrictDataclassError as error:
            raise ValueError(f"{name} {_problem(cls, name, value, error.__cause__)}") from error

    @wraps(strict_validate)
    def validate(self) -> None:
        try:
            strict_validate(self)
        except StrictDataclassError as error:
            raise ValueError(" ".join(str(error.__cause__).split())) from error

    @wraps(strict_init)
    def __init__(self, *args, **kwargs) -> None:
        try:
            strict_init(self, *args, **kwargs)
        except (TypeError, AttributeError, LookupError) as error:  # from transformers, for what it does not check
            raise ValueError(f"{cls.__name__} cannot be built ({type(error).__name__}: {error})") from error

    cls.__init__, cls.__setattr__, cls.validate = __init__, __setattr__, validate
    return cls


def _problem(cls: type, name: str, value: Any, cause: Exception) -> str:
    """Say what is wrong with the value of a field."""
    if isinstance(cause, ValueError):
        return str(cause)
    expected = cls.__dataclass_fields__[name].type
    types = [one for one in get_args(expected) if get_origin(expected) is not Literal] or [expected]
    choices = [choice for one in types if get_origin(one) is Literal for choice in get_args(one)]
    if choices:
        return f"must be one of {', '.join(choices)}, found {reprlib.repr(value)}"
    if float in types:
        types = [one for one in types if one is not int]  # an integer is a number
    names = [TYPE_NAMES.get(one, getattr(one, "__name__", str(one))) for one in types if one is not NoneType]
    return f"must be {' or '.join(names)}, found {reprlib.repr(value)}"


class CheckedConfig(PreTrainedConfig):
    """A configuration whose settings are checked wherever they come from; to be decorated by [`checked`]."""

    def __post_init__(self, **kwargs):
        check_dtype(self.dtype)
        super().__post_init__(**kwargs)

    def validate_common(self):
        """Refuse wrong values of the settings that all configurations have."""
        check_common(self)

    @classmethod
    def own_settings(cls) -> list[str]:
        """Return the names of the settings that are not those of every configuration of transformers."""
        common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
        return [field.name for field in dataclasses.fields(cls) if field.name not in common]

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Read a dictionary as [`~transformers.PreTrainedConfig.from_dict`] does; settings given besides replace those
        in the dictionary before anything is checked or derived from them.

        Raises:
            ValueError: names the setting, and the folder or Hub id if the dictionary comes from one.
        """
        given = {name: kwargs.pop(name) for name in cls.own_settings() if name in kwargs}
        for name, value in given.items():
            if isinstance(value, dict) and isinstance(config_dict.get(name), dict):
                given[name] = {**config_dict[name], **value}  # some settings of a nested configuration
        try:
            found = super().from_dict({**config_dict, **given}, **kwargs)
            (found[0] if isinstance(found, tuple) else found).validate()
            return found
        except (ValueError, AttributeError, LookupError) as error:  # AttributeError: a property cannot be set
            source = kwargs.get("name_or_path")
            raise ValueError(f"{source}: config.json: {error}" if source else str(error)) from error

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Read as [`~transformers.PreTrainedConfig.from_pretrained`] does; errors name the folder or Hub id."""
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except ValueError as error:
            prefix = "" if "name_or_path" in kwargs else f"{pretrained_model_name_or_path}: config.json: "
            raise ValueError(f"{prefix}{error}") from error
