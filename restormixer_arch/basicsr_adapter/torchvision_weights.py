"""Report missing weights of torchvision's pretrained backbones, which some losses and metrics use."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torchvision

from restormixer_arch.errors import UserError


@contextmanager
def explain_missing_weights(needed_by: str, backbone: str) -> Iterator[None]:
    """Turn a failed download of a backbone into a UserError of one line that states where its file is expected.

    Args:
        needed_by: name of the loss or metric, for the message.
        backbone: torchvision's name of the backbone, such as ``vgg19``.

    Raises:
        UserError: if the file is missing and cannot be downloaded.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* deprecated since 0.13", category=UserWarning)  # by BasicSR
            yield
    except UserError:
        raise
    except OSError as error:
        url = torchvision.models.get_model_weights(backbone).DEFAULT.url
        file = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
        reason = getattr(error, "reason", None) or str(error).partition("\n")[0]
        raise UserError(
            f"{needed_by}: needs the weights {file}, which cannot be downloaded from {url} ({reason}); put them there "
            "yourself, or set TORCH_HOME to the folder that has hub/checkpoints"
        ) from error
