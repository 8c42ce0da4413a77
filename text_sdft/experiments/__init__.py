"""Experiments of any modality, known only through its adapter: training runs, their evaluation, previews."""
