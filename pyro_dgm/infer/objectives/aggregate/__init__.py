"""Objectives with a penalty on the aggregate posterior of a batch."""
