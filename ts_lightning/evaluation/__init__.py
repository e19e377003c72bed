"""Evaluation: scores, reports, drawings and the retention certificate."""
