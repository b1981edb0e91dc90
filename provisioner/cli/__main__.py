"""``python -m provisioner.cli``: the command line where no console script is installed."""

from provisioner.cli.app import main

main()
