"""Segment and track in a clip: prompts find objects, trackers keep their ids."""

from openworldsam.video.frames import Clip, open_clip
from openworldsam.video.predictor import Track, VideoPredictor
from openworldsam.video.trackers import TrackedFrame

__all__ = ["Clip", "Track", "TrackedFrame", "VideoPredictor", "open_clip"]
