"""Text and geometry: boxes, regions, coordinate spaces, codecs, steps and prompt templates."""

from ts_lightning.grounding.answer import Answer, read_answer
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.grounding.coordinates import CoordinateSpace
from ts_lightning.grounding.regions import Region

__all__ = ["Answer", "CoordinateSpace", "Region", "get_codec", "read_answer"]
