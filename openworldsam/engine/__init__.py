"""Training and evaluation of a model: the commands, the training loop and what surrounds it.

From Python, `checks.check_training` comes first, then `trainer.Trainer` and `train.run_training`; for an evaluation
`checks.check_evaluation`, then `evaluation.benchmark.evaluate`.
"""
