"""Models for programs that call models: FiftyOne and Label Studio. Each module imports its program."""
