"""The fixtures of the prepare room's tests; what they are made of is in prepare_data."""

from tests.prepare.prepare_data import base, make_plan, question_file, run, smollm2, tiny_model

__all__ = ["base", "make_plan", "question_file", "run", "smollm2", "tiny_model"]
