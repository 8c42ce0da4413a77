"""The experiments of arXiv 2601.19897 on text: one adapter a task, with its rows, teacher's prompt and scorer.

``adapter: tool_use``, ``science``, ``medical`` or ``knowledge`` in a config; see docs/text-tasks.md.
"""
