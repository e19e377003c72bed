"""Text and geometry: boxes, regions, coordinate spaces, codecs, steps and prompt templates."""

from ts_lightning.grounding.codecs import get_codec
from ts_lightning.grounding.coordinates import CoordinateSpace
from ts_lightning.grounding.regions import Region

__all__ = ["CoordinateSpace", "Region", "get_codec"]
