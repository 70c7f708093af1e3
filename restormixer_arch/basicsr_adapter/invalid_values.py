"""Values of the option file that a network, a loss or an optimizer refuses: one line in place of a traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from restormixer_arch.basicsr_adapter.torchvision_weights import explain_missing_weights
from restormixer_arch.errors import UserError
from restormixer_arch.memory import is_out_of_memory


def explaining_build(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``build_network`` or ``build_loss`` with UserErrors."""

    @functools.wraps(original)
    def build(opt: dict[str, Any]) -> Any:
        with explain_invalid_options(opt["type"]):
            if opt["type"] == "PerceptualLoss":
                with explain_missing_weights("PerceptualLoss", opt.get("vgg_type", "vgg19")):
                    return original(opt)
            return original(opt)

    return build


def explaining_get_optimizer(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``BaseModel.get_optimizer`` with UserErrors; that there is no such optimizer stays as it is."""

    @functools.wraps(original)
    def get_optimizer(self: Any, optim_type: str, params: Any, lr: float, **kwargs: Any) -> Any:
        with explain_invalid_options(f"train.optim_*: {optim_type}", NotImplementedError):
            return original(self, optim_type, params, lr, **kwargs)

    return get_optimizer


@contextmanager
def explain_invalid_options(what: str, *passed: type[Exception]) -> Iterator[None]:
    """Turn whatever a class raises while it is built into one line.

    Args:
        what: the class, for the message.
        passed: errors that are left as they are.

    Raises:
        UserError: it cannot be built.
    """
    try:
        yield
    except (UserError, *passed):
        raise
    except ValueError as error:
        raise UserError(f"{what} refuses an option: {error}") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(f"not enough memory to build {what} with these options") from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
        raise UserError(f"{what} cannot be built with these options ({reason})") from error
