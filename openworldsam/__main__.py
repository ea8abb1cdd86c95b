"""`python -m openworldsam`: the command `openworldsam`."""

from openworldsam.cli import main

if __name__ == "__main__":
    main()
