"""Evaluation of policies and reward models: sampling, measures with their uncertainty, and figures."""
