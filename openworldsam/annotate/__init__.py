"""Annotation of whole folders: prompts in, files for annotation tools out."""
