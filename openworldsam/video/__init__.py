"""Text finds objects in a clip, tracking keeps their identity."""

from openworldsam.video.frames import Clip, open_clip
from openworldsam.video.predictor import Track, TrackedFrame, VideoPredictor

__all__ = ["Clip", "Track", "TrackedFrame", "VideoPredictor", "open_clip"]
