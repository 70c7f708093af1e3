"""Report option values that a network, loss or optimizer rejects in one line instead of a traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from restormixer_arch.basicsr_adapter.torchvision_weights import explain_missing_weights
from restormixer_arch.errors import UserError, exception_text
from restormixer_arch.memory import is_out_of_memory


def explaining_build(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``build_network`` or ``build_loss`` to raise UserError for invalid options."""

    @functools.wraps(original)
    def build(opt: dict[str, Any]) -> Any:
        with explain_invalid_options(opt["type"]):
            if opt["type"] == "PerceptualLoss":
                with explain_missing_weights("PerceptualLoss", opt.get("vgg_type", "vgg19")):
                    return original(opt)
            return original(opt)

    return build


def explaining_get_optimizer(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``BaseModel.get_optimizer`` likewise; its NotImplementedError for an unknown optimizer is not changed."""

    @functools.wraps(original)
    def get_optimizer(self: Any, optim_type: str, params: Any, lr: float, **kwargs: Any) -> Any:
        with explain_invalid_options(f"train.optim_*: {optim_type}", NotImplementedError):
            return original(self, optim_type, params, lr, **kwargs)

    return get_optimizer


@contextmanager
def explain_invalid_options(what: str, *passed: type[Exception]) -> Iterator[None]:
    """Turn an exception raised while an object is built into a UserError of one line.

    Args:
        what: name of the class, for the message.
        passed: exceptions that are passed on unchanged.

    Raises:
        UserError: if the object cannot be built.
    """
    try:
        yield
    except (UserError, *passed):
        raise
    except ValueError as error:
        raise UserError(f"{what} refuses an option: {exception_text(error, with_type=False)}") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(f"not enough memory to build {what} with these options") from error
        raise UserError(f"{what} cannot be built with these options ({exception_text(error)})") from error
