"""Segment and track in a clip: prompts find objects, trackers keep their ids."""

from openworldsam.video.frames import Clip, open_clip
from openworldsam.video.predictor import Track, TrackedFrame, VideoPredictor

__all__ = ["Clip", "Track", "TrackedFrame", "VideoPredictor", "open_clip"]
