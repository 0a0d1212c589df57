"""COCO evaluation of models and of results files."""
