"""What TensorBoard, MLflow and Weights & Biases need on this machine, before anything starts."""

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

from service.errors import ConfigError

_PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
_INSTALLED_BY = {
    "tensorboard": "tensorboardX",
    "mlflow": "'crossreid[mlflow]'",
    "wandb": "'crossreid[wandb]'",
}


def check_needs(names: Iterable[str], asked_by: str) -> None:
    """Refuses a name whose package or login is missing.

    asked_by: the setting or option that holds the names.

    Raises:
        ConfigError: naming the package; or Weights & Biases has nobody to log in as.
    """
    names = tuple(names)
    for name in names:
        package = _PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{asked_by}: {name} needs the package {package}; run pip install "
                f"{_INSTALLED_BY[name]}, or take {name} out"
            )
    is_offline = os.environ.get("WANDB_MODE") in ("offline", "disabled")
    has_login = "WANDB_API_KEY" in os.environ or Path("~/.netrc").expanduser().exists()
    if "wandb" in names and not is_offline and not has_login:
        raise ConfigError(
            f"{asked_by}: wandb has no login; set WANDB_API_KEY, or WANDB_MODE=offline to keep its "
            "files here"
        )
