"""Each task by itself, about queries that are labelled by class."""

import torch

from openworldsam.inference import InferenceOptions, Queries, Question, infer
from openworldsam.inference import semantic_scores as scores_of_question


def question(queries, size, num_classes=None, is_thing=None):
    num_prompts = int(queries.labels.max()) + 1 if len(queries.labels) else 0
    things = None if is_thing is None else [is_thing.get(label, True) for label in range(num_prompts)]
    return Question.of(size, num_prompts, is_thing=things, num_classes=num_classes)


def strips(scores, labels, *logits):
    """Queries one pixel high."""
    return Queries(torch.tensor(logits).float()[:, None], torch.tensor(scores), torch.tensor(labels))


def instances(queries, size, options):
    return infer([queries], ("instance",), question(queries, size), options)["instance"]


def panoptic(queries, size, is_thing, options):
    return infer([queries], ("panoptic",), question(queries, size, is_thing=is_thing), options)["panoptic"]


def referring(queries, size):
    return infer([queries], ("referring",), question(queries, size), InferenceOptions())["referring"]


def semantic(queries, size, num_classes, options):
    return infer([queries], ("semantic",), question(queries, size, num_classes), options)["semantic"].map


def semantic_scores(queries, size, num_classes, options):
    return scores_of_question(queries, question(queries, size, num_classes), options)
