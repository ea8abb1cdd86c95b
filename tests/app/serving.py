"""The server in a process of its own."""

import tempfile

from openworldsam import cli

main = cli.command("app")


def serve(folder, words):
    """Run the command, its temporary files in a folder."""
    tempfile.tempdir = str(folder)
    main(words)
