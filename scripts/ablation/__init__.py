"""What `study.py`, `inspect_run.py` and `ablation_table.py` share: the plan, the runs, their numbers and pictures."""
