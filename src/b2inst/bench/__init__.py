"""What `python -m b2inst.benchmark` measures: our models, torchvision's, and how."""
