"""Segment and track in a clip: write an overlay video, id maps and a list of objects."""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter

from openworldsam.annotate.prompts import parse_prompts
from openworldsam.checkpoint import provenance
from openworldsam.predictor import OpenWorldSAMPredictor
from openworldsam.predictor.prediction import why_nothing
from openworldsam.utils.launch import item_error, say, user_errors
from openworldsam.utils.progress import with_progress
from openworldsam.utils.text import not_found
from openworldsam.video.frames import open_clip
from openworldsam.video.predictor import VideoPredictor
from openworldsam.video.results import ResultWriter

MAX_LISTED = 20
"""Lost frames that are printed; tracks.json lists all."""


def segment_clip(args: argparse.Namespace) -> tuple[str, list[str]]:
    """Segment and track the clip of the command line; return a line that summarises the result, and what is not in it.

    A frame that cannot be read, segmented, drawn or saved stops no other.

    Raises:
        ValueError, OSError, KeyError: the input is unusable, or the results cannot be written.
    """
    clip = open_clip(args.input)
    writer = ResultWriter(args.output, clip.fps, clip.sound)
    predictor = OpenWorldSAMPredictor(args.config, device=args.device, opts=args.opts)
    options = {"task": args.task, "every": args.every, "tracker": args.tracker, "forget": args.forget}
    video = VideoPredictor(predictor, parse_prompts(args.prompts).texts, **options)
    rule, threshold = predictor.model.inference.score, predictor.model.inference.threshold_of(args.task)

    def save_tracks() -> None:
        about = {
            **{"file_name": args.input.name, "frames": writer.written, "fps": clip.fps, "lost": clip.lost},
            **{"prompts": video.prompts, **options, "score": {"rule": rule, "threshold": threshold}},
            "not_found": video.not_found,
            **provenance(predictor.cfg, predictor.sources),
        }
        writer.write_tracks(video.tracks, about)

    with writer:
        try:
            for image in with_progress(clip.frames, clip.length or None, "frame"):
                number, seconds, known = len(video), clip.times[-1], len(video.tracks)
                try:
                    writer.write(number, seconds, image, video.step(image), video.tracks)
                except Exception as error:
                    clip.lost.append(f"the frame at {seconds:.2f} s: {item_error(error)}")
                if len(video.tracks) > known:  # the ids in the frames written so far need names, even after a kill
                    save_tracks()
        finally:
            save_tracks()
    if not writer.written:
        raise ValueError(f"no frame of {args.input} has a result; {clip.lost[0]}")
    if not video.tracks:
        return f"{args.output}: {why_nothing(args.task, threshold, max(video.not_found.values()), rule)}", clip.lost
    counts: dict[str, int | str] = {**Counter(track.prompt for track in video.tracks)}
    counts |= {prompt: not_found(best, threshold) for prompt, best in video.not_found.items()}
    objects = ", ".join(f"{prompt} {counts.get(prompt, 0)}" for prompt in video.prompts)
    return f"{args.output}/overlay.mp4  {writer.written} frames, {objects}", clip.lost


def run(args: argparse.Namespace) -> None:
    """Run the command; exit with 1 if frames were lost, 2 after a user error, 130 after Ctrl-C; results are kept."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with user_errors():
        result, lost = segment_clip(args)
        say(result)
        if lost:
            say(
                f"{args.input}: {len(lost)} lost ({args.output}/tracks.json):",
                *(f"  {why}" for why in lost[:MAX_LISTED]),
            )
            sys.exit(1)
