"""trackio, Hugging Face's local tracker, as a logger of Lightning."""

from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class TrackioLogger(Logger):
    """Log figures and pictures with trackio; `trackio show` looks at them. Data lies where TRACKIO_DIR says.

    Args:
        project: Name of the project, and of the run in it (`name`; trackio makes one up when missing).
        name: Name of the run.
    """

    version = ""

    def __init__(self, project: str = "ts-lightning", name: str | None = None) -> None:
        super().__init__()
        try:
            import trackio
        except ImportError:
            raise ValueError("trackio: seen no such package, expected it: pip install trackio") from None
        self.trackio, self.project, self.run_name = trackio, project, name
        self.run: Any = None

    @property
    def name(self) -> str:
        return self.project

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if self.run is None:
            self.run = self.trackio.init(project=self.project, name=self.run_name)
        self.trackio.log(dict(metrics), step=step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """As WandbLogger's: files of pictures."""
        shown = [self.trackio.Image(image) for image in images]
        self.log_metrics({f"{key}/{number}": image for number, image in enumerate(shown)}, step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: they are in config.yaml and in every checkpoint."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.run is not None:
            self.trackio.finish()
            self.run = None
