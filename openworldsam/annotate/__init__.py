"""Whole folders of pictures: what is asked of each, and the files that annotation tools open."""
