"""What ``synopsis reproduce`` does: the tables of the documentation, from training to Markdown."""
