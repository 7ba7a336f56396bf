"""Streams of rows through a process: reading, progressive evaluation, saved states, reports."""
