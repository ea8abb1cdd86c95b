"""The server in a process of its own."""

import tempfile

from openworldsam.app.command import main


def serve(folder, words):
    """Run the command, its temporary files in a folder."""
    tempfile.tempdir = str(folder)
    main(words)
