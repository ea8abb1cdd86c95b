"""Time and cost of each stage: the implementation of openworldsam benchmark."""
