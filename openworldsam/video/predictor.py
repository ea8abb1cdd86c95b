"""Masks with object ids from the frames of a clip, one frame at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from openworldsam.inference.nms import greedy_nms, mask_iou
from openworldsam.modeling import ImageFeatures
from openworldsam.modeling.prompt_encoders import clean_prompts
from openworldsam.predictor.prediction import Prediction
from openworldsam.predictor.predictor import OpenWorldSAMPredictor
from openworldsam.video.memory import SAM2Memory, read_video_weights
from openworldsam.video.trackers import SAME_OBJECT, DetectionTracker, MemoryTracker, TrackedFrame, Tracker, iou_between

OBJECT_TASKS = ("instance", "referring")
TRACKERS = ("memory", "detection")


@dataclass
class Track:
    """An object of a clip: id from 1, the prompt and scores of its first mask, first and last visible frame.

    match is None without a score head.
    """

    id: int
    prompt: str
    score: float
    predicted_iou: float
    match: float | None
    first_frame: int
    last_frame: int


class VideoPredictor:
    """Segments and tracks: prompts find objects, a tracker keeps their ids. Only one frame is held at a time.

        video = VideoPredictor(OpenWorldSAMPredictor("configs/presets/released.yaml"), ["zebra"])
        for frame in open_clip("clip.mp4").frames:
            result = video.step(frame)

    A found mask whose IoU with a known object exceeds 0.5 is that object; any other is a new object with a new id. An
    object out of sight keeps its id until it is forgotten.

    Args:
        predictor: the image model.
        prompts: texts.
        task: "instance": every occurrence of a prompt; "referring": the best one.
        every: look for new objects in the first frame and every so many frames after it; 0: in the first only.
        tracker: "memory": SAM2's memory carries the masks on; "detection": the prompts are asked in every frame and
            masks of the same prompt are linked by overlap, for weights without SAM2's video modules.
        forget: frames out of sight after which an object is forgotten, so that memory and time do not grow with the
            clip; if it returns it gets a new id.

    Raises:
        ValueError: unknown options; no prompt or a bad one; weights without video modules.
    """

    def __init__(
        self,
        predictor: OpenWorldSAMPredictor,
        prompts: Sequence[str],
        *,
        task: str = "instance",
        every: int = 15,
        tracker: str = "memory",
        forget: int = 300,
    ) -> None:
        if not prompts:
            raise ValueError("no prompt: name what to look for in the clip")
        if task not in OBJECT_TASKS or tracker not in TRACKERS or every < 0 or forget < 1:
            raise ValueError(
                f"task is one of {', '.join(OBJECT_TASKS)}, tracker one of {', '.join(TRACKERS)}, every at least 0, "
                f"forget at least 1; got {task!r}, {tracker!r}, {every}, {forget}"
            )
        self.predictor, self.prompts, self.task = predictor, clean_prompts(prompts), task
        self.every, self.forget = every, forget
        self.tracks: list[Track] = []
        self.not_found = dict.fromkeys(self.prompts, 0.0)
        """Best score so far of each prompt that has found nothing, when new objects were looked for."""
        self._known: set[int] = set()
        self._num_frames = 0
        self._size: tuple[int, int] | None = None
        self._tracker: Tracker = DetectionTracker()
        if tracker == "memory":
            self._tracker = MemoryTracker(SAM2Memory.from_file(predictor.model, read_video_weights(predictor.cfg)))

    def step(self, image: np.ndarray) -> TrackedFrame:
        """Segment and track in the next frame, uint8 [H, W, 3], RGB.

        Raises:
            ValueError: its size differs from that of earlier frames, or it is not such an array.
        """
        size, frame = (image.shape[0], image.shape[1]), len(self)
        if self._size not in (None, size):
            height, width = self._size or size
            raise ValueError(f"frame {frame} is {size[1]} x {size[0]} pixels, earlier ones are {width} x {height}")
        self.predictor.set_image(image)
        features = self.predictor.features
        looks = frame == 0 or (self.every > 0 and frame % self.every == 0)
        found = self.predictor.predict(self.prompts, self.task) if looks or self._tracker.needs_prompts else None
        located = self._tracker.locate(frame, features, found, size)
        for object_id in located.scores:
            self.tracks[object_id - 1].last_frame = frame
        for object_id in list(self._known):
            if frame - self.tracks[object_id - 1].last_frame >= self.forget:
                self._tracker.forget(object_id)
                self._known.remove(object_id)
        if found is not None and looks:
            missed = found.not_found
            self.not_found = {text: max(best, missed[text]) for text, best in self.not_found.items() if text in missed}
            self._begin(found, located, features)
        self._num_frames, self._size = frame + 1, size
        return located

    def __len__(self) -> int:
        """Return the number of frames so far."""
        return self._num_frames

    def _begin(self, found: Prediction, located: TrackedFrame, features: ImageFeatures) -> None:
        """Give new ids to the found masks that are no known object, best first, and add them to the frame."""
        known = np.stack([*located.masks.values()]) if located.masks else np.zeros((0, *located.id_map.shape), bool)
        unknown = np.flatnonzero(~(iou_between(found.masks, known) > SAME_OBJECT).any(axis=1))
        iou, scores = mask_iou(torch.from_numpy(found.masks[unknown])), torch.from_numpy(found.scores[unknown])
        new = unknown[greedy_nms(iou, scores, SAME_OBJECT).numpy()].tolist()
        first, frame = len(self.tracks) + 1, len(self)
        for object_id, index in enumerate(new, start=first):
            prompt, score, mask = int(found.prompt_index[index]), float(found.scores[index]), found.masks[index]
            evidence = found.evidence(index)
            both = evidence["predicted_iou"], evidence.get("match")
            self.tracks.append(Track(object_id, found.prompts[prompt], score, *both, frame, frame))
            self._tracker.begin(object_id, prompt, frame, features, mask)
            self._known.add(object_id)
            located.masks[object_id], located.scores[object_id] = mask, score
            located.evidence[object_id] = evidence
        for object_id, index in reversed(list(enumerate(new, start=first))):  # the best one on top
            located.id_map[found.masks[index]] = object_id
